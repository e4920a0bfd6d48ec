import pytest
import torch

from ray_rl.config.adapter import Lora
from ray_rl.errors import ConfigError
from ray_rl.models.adapter import adapters_off, base_name, dropout_off, inject, is_adapter, parts_of, peft_name
from tests.unit.models.tiny import VOCABULARY, tiny_llama

TOKENS = torch.arange(3, VOCABULARY)[None]
Q = "model.layers.0.self_attn.q_proj"


def adapted(lora=None, *, seed=0):
    model = tiny_llama()
    model.requires_grad_(False)
    inject(model.base_model, lora or Lora(rank=4), seed=seed, key="model.path")
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_linear_layer_except_the_head_gets_an_adapter_and_nothing_else_is_trained():
    model = adapted()
    names = set(trained(model))
    assert names == {name for name, _ in model.named_parameters() if is_adapter(name)}
    layers = {name.split(".lora_")[0].split(".")[-1] for name in names}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(names) == 2 * 7 * 2


def test_new_adapters_change_nothing_until_b_is_trained():
    model = adapted()
    assert torch.equal(logits(model), logits(tiny_llama()))
    with torch.no_grad():
        model.get_parameter(f"{Q}.lora_B.default.weight").fill_(0.1)
    assert not torch.allclose(logits(model), logits(tiny_llama()), atol=1e-3)
    with adapters_off(model):
        assert torch.equal(logits(model), logits(tiny_llama()))
    assert not torch.allclose(logits(model), logits(tiny_llama()), atol=1e-3)
    assert set(trained(model)) == set(trained(adapted()))


@pytest.mark.parametrize(
    ("init", "deviation", "largest"), [("default", 1 / 96**0.5, 1 / 32**0.5), ("gaussian", 1 / 4, 2.0)]
)
def test_a_starts_as_init_says_and_depends_on_the_seed_alone(init, deviation, largest):
    name = f"{Q}.lora_A.default.weight"
    one, torch_draws = adapted(Lora(rank=4, init=init), seed=1).get_parameter(name), torch.random.get_rng_state()
    same = adapted(Lora(rank=4, init=init), seed=1).get_parameter(name)
    other = adapted(Lora(rank=4, init=init), seed=2).get_parameter(name)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.std().item() == pytest.approx(deviation, rel=0.2)
    assert one.abs().max() <= largest
    assert torch.equal(torch_draws, torch.random.get_rng_state())


def test_names_lead_from_one_form_to_the_others():
    weight, a, b = f"{Q}.base_layer.weight", f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight"
    assert base_name(weight) == f"{Q}.weight"
    assert parts_of(weight) == (a, b)
    assert parts_of(f"{Q}.base_layer.bias") is None and parts_of("model.norm.weight") is None
    assert (is_adapter(a), is_adapter(b), is_adapter(weight)) == (True, True, False)
    assert peft_name(b) == f"base_model.model.{Q}.lora_B.weight"
    assert {a, b, weight} <= set(dict(adapted().named_parameters()))


def test_a_name_that_no_linear_layer_has_is_refused():
    with pytest.raises(ConfigError) as caught:
        adapted(Lora(targets=["q_proj", "embed_tokens", "wq"]))
    assert str(caught.value) == (
        "model.adapter.targets: no linear layer of LlamaModel is named embed_tokens, wq; set it to some of down_proj, "
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_dropout_can_be_off():
    model = adapted(Lora(rank=4, dropout=0.5)).train()
    with torch.no_grad():
        model.get_parameter(f"{Q}.lora_B.default.weight").fill_(0.1)
    assert not torch.equal(logits(model), logits(model))
    with dropout_off(model):
        assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model), logits(model))
