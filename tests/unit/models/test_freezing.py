import pytest

from ray_rl.errors import ConfigError
from ray_rl.models.freezing import freeze
from tests.unit.models.tiny import tiny_llama


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_nothing_is_frozen_by_default():
    model = tiny_llama()
    freeze(model, layers=0)
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_the_first_layers_and_the_embeddings_with_the_tied_head_are_not_trained():
    model = tiny_llama()
    freeze(model, layers=1)
    assert all(name.startswith("model.layers.1.") or name == "model.norm.weight" for name in trained(model))
    assert any("q_proj" in name for name in trained(model))
    assert not model.get_output_embeddings().weight.requires_grad


def test_one_layer_must_be_left():
    with pytest.raises(ConfigError, match=r"train.frozen_layers=2: the model has 2 decoder layers .* to 1 or less"):
        freeze(tiny_llama(), layers=2)


def test_a_model_whose_layers_are_elsewhere_is_refused():
    model = tiny_llama()
    model.base_model.blocks = model.base_model.layers
    del model.base_model.layers
    with pytest.raises(ConfigError, match="LlamaForCausalLM does not keep its decoder layers in one list"):
        freeze(model, layers=1)
