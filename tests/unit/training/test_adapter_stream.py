"""What is sent and exported of a model with adapters."""

import pytest
import torch
import torch.distributed as dist

from ray_rl.config.adapter import Lora
from ray_rl.models.adapter import inject, is_adapter
from ray_rl.models.policy import PolicyModel
from ray_rl.training.adapter_stream import MergedStream, SeparateStream
from ray_rl.training.gather import ParameterStream
from tests.unit.models.tiny import tiny_llama

LORA = Lora(rank=4, alpha=8, targets=["q_proj", "down_proj"])
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module", autouse=True)
def alone():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def model(request):
    """A model with adapters that have been trained a little."""
    model = tiny_llama(dtype=request.param)
    model.requires_grad_(False)
    inject(model.base_model, LORA, seed=0, key="model.path")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture
def stream(model):
    dtype = str(model.dtype).removeprefix("torch.")
    return ParameterStream(PolicyModel(model, chunk_tokens=1, temperature=1.0), dtype=dtype)


def plain():
    return [name for name, _ in tiny_llama().named_parameters()]


def found(stream, specs=None):
    return {spec.name: tensor for group in stream.groups(specs) for spec, tensor in group}


def test_merged_matrices_have_the_product_of_their_adapters_added_in_float32_and_are_rounded_once(model, stream):
    merged = MergedStream(stream, scale=LORA.scale)
    sent, own = found(merged), dict(model.named_parameters())
    assert [spec.name for spec in merged.specs] == list(sent) == plain()
    for name, tensor in sent.items():
        stem = name.removesuffix(".weight")
        expected = own.get(name)
        if expected is None:
            a, b = (own[f"{stem}.lora_{part}.default.weight"].double() for part in "AB")
            exact = own[f"{stem}.base_layer.weight"].double() + 2.0 * b @ a
            expected = exact.to(tensor.dtype)
            assert not torch.equal(own[f"{stem}.base_layer.weight"], tensor)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6 if tensor.dtype == torch.float32 else 2**-8)


def test_after_the_first_publish_only_the_matrices_with_adapters_are_sent_again(stream):
    merged = MergedStream(stream, scale=LORA.scale)
    trained = [spec.name for spec in merged.trained_specs]
    assert trained == [name for name in plain() if "q_proj" in name or "down_proj" in name]
    assert list(found(merged, merged.trained_specs)) == trained


def test_parts_of_merged_matrices_are_bit_for_bit_those_of_the_whole(stream):
    merged = MergedStream(stream, scale=LORA.scale)
    sent = found(merged)
    parts = list(merged.slices())
    assert [values.numel() for _, values in parts] == merged.part_sizes(merged.specs)
    for spec, (start, values) in zip(merged.specs, parts, strict=True):
        assert start == 0 and torch.equal(values, sent[spec.name].flatten()), spec.name


def test_a_separate_publish_has_the_model_first_and_then_only_its_adapters_under_the_names_of_peft(model, stream):
    separate = SeparateStream(stream)
    names = [spec.name for spec in separate.specs]
    assert names[: len(plain())] == plain()
    assert [spec.name for spec in separate.trained_specs] == names[len(plain()) :]
    assert f"base_model.model.{Q}.lora_A.weight" in names
    sent = found(separate)
    own = dict(model.named_parameters())
    assert torch.equal(sent[f"{Q}.weight"], own[f"{Q}.base_layer.weight"])
    assert torch.equal(sent[f"base_model.model.{Q}.lora_B.weight"], own[f"{Q}.lora_B.default.weight"])
    assert len(found(separate, separate.trained_specs)) == sum(map(is_adapter, own)) == 8
    sizes = [values.numel() for _, values in separate.slices(separate.trained_specs)]
    assert sizes == separate.part_sizes(separate.trained_specs) == [t.numel() for n, t in own.items() if is_adapter(n)]
