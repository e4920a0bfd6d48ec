"""A bfloat16 model whose residual stream is float32."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ray_rl.batching.encoding import encode
from ray_rl.batching.micro_batches import Tree
from ray_rl.models.attention import SHARED_PREFIX
from ray_rl.models.loading import load_causal_lm
from ray_rl.models.policy import PolicyModel
from ray_rl.models.value import load_value_model
from ray_rl.types import TrainBatch
from tests.unit.models.tiny import VOCABULARY, gradients, ragged_batch, relative_error, tiny_llama

BATCHES = [ragged_batch((7, 9), (6, 8, 7, 8), seed=seed) for seed in range(6)]
MICRO = tuple(Tree(p, (2 * p, 2 * p + 1)) for p in range(2))
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS = {
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2, biases": ("Qwen2", {}),
    "qwen3, norms of queries and keys": ("Qwen3", {}),
    "olmo2, norms behind the branches": ("Olmo2", {}),
    "gemma, scaled embeddings": ("Gemma", {}),
    "phi3, fused projections": ("Phi3", {}),
    "qwen3, experts": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
}


def saved(folder: Any, name: str) -> str:
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | settings)
    getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def gradient(model: Any, attention: str, batch: TrainBatch = BATCHES[0]) -> torch.Tensor:
    model.zero_grad()
    encoded = encode(batch, MICRO, packing="shared_prefix" if attention == SHARED_PREFIX else "padded")
    logprobs_N, _ = PolicyModel(model, chunk_tokens=64, temperature=1.0)(encoded.inputs, with_entropy=False)
    (logprobs_N * encoded.pick(batch.advantages_RT)).sum().backward()
    return gradients(model)


@pytest.mark.parametrize("name", MODELS)
def test_its_gradient_is_nearer_to_that_of_float32_than_the_padded_one_whatever_the_architecture(
    tmp_path: Any, name: str
) -> None:
    folder = saved(tmp_path, name)

    def loaded(attention: str, dtype: str) -> Any:
        return load_causal_lm(folder, dtype=dtype, attention=attention, trust_remote_code=False)

    exact, padded, shared = loaded("sdpa", "float32"), loaded("sdpa", "bfloat16"), loaded(SHARED_PREFIX, "bfloat16")
    errors = [
        [
            relative_error(gradient(model, attention, batch), gradient(exact, "sdpa", batch))
            for model, attention in ((shared, SHARED_PREFIX), (padded, "sdpa"))
        ]
        for batch in BATCHES
    ]
    of_shared, of_padded = np.mean(errors, 0)
    assert of_shared < of_padded


@pytest.mark.parametrize(("attention", "dtype"), [(SHARED_PREFIX, torch.float32), ("sdpa", torch.bfloat16)])
def test_layers_see_a_float32_residual_with_shared_prefixes_alone(
    tmp_path: Any, attention: str, dtype: torch.dtype
) -> None:
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), dtype="bfloat16", attention=attention, trust_remote_code=False)
    seen: list[torch.dtype] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert gradient(model, attention).isfinite().all()
    assert seen == [dtype] * len(model.model.layers)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("is_reward_model", [False, True])
def test_a_critic_has_it_too_whether_it_starts_from_a_language_model_or_a_reward_model(
    tmp_path: Any, is_reward_model: bool
) -> None:
    language_model = tiny_llama(dtype=torch.bfloat16)
    config = transformers.LlamaConfig(**language_model.config.to_dict() | {"num_labels": 1})
    scorer = transformers.LlamaForSequenceClassification(config).to(torch.bfloat16)
    (scorer if is_reward_model else language_model).save_pretrained(tmp_path)
    critic = load_value_model(str(tmp_path), dtype="bfloat16", attention=SHARED_PREFIX, trust_remote_code=False)
    seen: list[torch.dtype] = []
    for layer in critic.backbone.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    critic(encode(BATCHES[0], MICRO, packing="shared_prefix").inputs).sum().backward()
    assert seen == [torch.float32] * 2


def test_a_float32_model_is_left_alone(tmp_path: Any) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), dtype="float32", attention=SHARED_PREFIX, trust_remote_code=False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert gradient(model, SHARED_PREFIX).isfinite().all()
