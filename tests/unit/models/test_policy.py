from dataclasses import replace

import pytest
import torch

from ray_rl.batching.encoding import encode
from ray_rl.batching.micro_batches import Tree
from ray_rl.config.train import Packing
from ray_rl.errors import ConfigError
from ray_rl.models.policy import WRAPPED, ChunkedHead, ModelInputs, PolicyModel
from tests.unit.models.tiny import gradients, one_by_one, ragged_batch, relative_error, tiny_llama

BATCH = ragged_batch()
ENCODED = encode(BATCH, tuple(Tree(row // 2, (row,)) for row in range(6)), packing="padded")
LOSS_TOKENS = len(ENCODED.row_N)


@pytest.mark.parametrize("chunk_tokens", [1, 3, LOSS_TOKENS, 1000])
def test_the_size_of_the_logit_chunks_changes_nothing(chunk_tokens: int) -> None:
    policies = [PolicyModel(tiny_llama("sdpa"), chunk_tokens=size, temperature=1.0) for size in (chunk_tokens, 7)]
    logprobs = [policy(ENCODED.inputs, with_entropy=True)[0] for policy in policies]
    for value in logprobs:
        value.square().sum().backward()
    assert torch.allclose(*logprobs, rtol=1e-6)
    assert relative_error(*(gradients(policy.causal_lm) for policy in policies)) < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_are_those_of_the_softmax_at_the_sampling_temperature(temperature: float) -> None:
    policy = PolicyModel(tiny_llama("sdpa"), chunk_tokens=5, temperature=temperature)
    logprobs_N, _ = policy(ENCODED.inputs, with_entropy=False)
    expected_RT = one_by_one(tiny_llama(), BATCH, temperature=temperature)
    assert torch.allclose(logprobs_N, expected_RT[ENCODED.row_N, ENCODED.time_N], atol=1e-5)


def test_the_entropy_is_computed_only_when_asked_for() -> None:
    policy = PolicyModel(tiny_llama("sdpa"), chunk_tokens=5, temperature=1.0)
    assert policy(ENCODED.inputs, with_entropy=False)[1] is None
    _, entropy_N = policy(ENCODED.inputs, with_entropy=True)
    assert entropy_N.shape == (LOSS_TOKENS,)
    assert (entropy_N > 0).all()


@pytest.mark.parametrize("packing", ["padded", "packed", "shared_prefix"])
def test_an_empty_micro_batch_touches_every_parameter_with_zero_gradient(packing: Packing) -> None:
    attention = "ray_rl_shared_prefix" if packing == "shared_prefix" else "sdpa"
    policy = PolicyModel(tiny_llama(attention), chunk_tokens=5, temperature=1.0)
    encoded = encode(BATCH, (), packing=packing)
    logprobs_N, entropy_N = policy(encoded.inputs, with_entropy=True)
    assert logprobs_N.shape == entropy_N.shape == (0,)
    logprobs_N.sum().backward()
    assert not gradients(policy.causal_lm).any()


def test_inputs_on_the_cpu_stay_where_they_are() -> None:
    inputs: ModelInputs = ENCODED.inputs
    assert inputs.to("cpu") is inputs


def test_inputs_move_to_a_device_whole() -> None:
    moved = replace(ENCODED.inputs).to("meta")
    assert moved.tokens_BL.device == moved.labels_N.device == moved.attention_mask_BL.device == torch.device("meta")


@pytest.mark.parametrize("chunk_tokens", [1, 1000])
def test_the_head_is_one_module_however_many_chunks_it_takes(chunk_tokens: int) -> None:
    calls: list[type] = []
    policy = PolicyModel(tiny_llama("sdpa"), chunk_tokens=chunk_tokens, temperature=1.0)
    for module in policy.modules():
        module.register_forward_hook(lambda module, inputs, outputs: calls.append(type(module)))
    policy(ENCODED.inputs, with_entropy=False)
    assert calls[-2:] == [ChunkedHead, PolicyModel]
    assert calls.count(ChunkedHead) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_have_the_names_of_the_model_and_none_is_there_twice(tied: bool) -> None:
    model = tiny_llama("sdpa")
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    names = [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" in names) is not tied
    policy = PolicyModel(model, chunk_tokens=5, temperature=1.0)
    assert [name for name, _ in policy.named_parameters()] == [f"{WRAPPED}{name}" for name in names]


def test_a_head_that_is_not_linear_is_refused() -> None:
    model = tiny_llama("sdpa")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ConfigError, match=r"the head of LlamaForCausalLM is a Sequential, .* choose another model"):
        PolicyModel(model, chunk_tokens=5, temperature=1.0)
