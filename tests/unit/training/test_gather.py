import pytest
import torch
import torch.distributed as dist

from ray_rl.models.freezing import freeze
from ray_rl.models.policy import PolicyModel
from ray_rl.training.gather import ParameterSpec, ParameterStream
from tests.unit.models.tiny import tiny_llama


@pytest.fixture(scope="module", autouse=True)
def alone():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def stream():
    return ParameterStream(PolicyModel(tiny_llama(), chunk_tokens=1, temperature=1.0), dtype="bfloat16")


def test_a_group_is_a_decoder_layer_or_what_stands_between_layers(stream):
    groups = [[spec.name for spec, _ in group] for group in stream.groups()]
    assert groups[0] == ["model.embed_tokens.weight"]
    assert all(name.startswith("model.layers.0.") for name in groups[1])
    assert all(name.startswith("model.layers.1.") for name in groups[2])
    assert groups[3:] == [["model.norm.weight"]]


def test_every_parameter_comes_once_in_the_order_of_the_specs_a_tied_head_as_its_embedding(stream):
    names = [spec.name for group in stream.groups() for spec, _ in group]
    assert names == [spec.name for spec in stream.specs] == [name for name, _ in tiny_llama().named_parameters()]
    assert "lm_head.weight" not in names


def test_what_is_frozen_is_left_out_of_what_is_trained_and_can_be_left_out_of_the_stream():
    model = tiny_llama()
    freeze(model, layers=1)
    stream = ParameterStream(PolicyModel(model, chunk_tokens=1, temperature=1.0), dtype="bfloat16")
    trained = [spec.name for spec in stream.trained_specs]
    assert len(stream.specs) > len(trained) > 0
    assert {name.split(".")[2] for name in trained if "layers" in name} == {"1"}
    assert "model.embed_tokens.weight" not in trained
    assert [spec.name for group in stream.groups(stream.trained_specs) for spec, _ in group] == trained
    sizes = [part.numel() for _, part in stream.slices(stream.trained_specs)]
    assert sizes == [torch.Size(spec.shape).numel() for spec in stream.trained_specs]


def test_values_are_sent_in_the_dtype_and_shape_of_their_spec(stream):
    for spec, value in (pair for group in stream.groups() for pair in group):
        assert value.dtype == torch.bfloat16
        assert tuple(value.shape) == spec.shape
        assert value.nbytes == spec.bytes


def test_the_size_of_a_parameter_follows_its_dtype():
    assert ParameterSpec("w", "float32", (3, 5)).bytes == 60
    assert ParameterSpec("w", "bfloat16", (3, 5)).bytes == 30
    assert ParameterSpec("scale", "float32", ()).bytes == 4


def test_the_slices_of_one_rank_are_the_whole_parameters_in_the_order_of_the_specs(stream):
    slices = list(stream.slices())
    values = dict(stream._parameters)
    assert len(slices) == len(stream.specs)
    for spec, (start, part) in zip(stream.specs, slices, strict=True):
        assert start == 0
        assert torch.equal(part, values[spec.name].reshape(-1))
