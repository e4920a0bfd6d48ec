import torch

from ray_rl.config.adapter import Lora
from ray_rl.models.adapter import adapters_off, inject
from ray_rl.models.quantised import quantise, round_weights, shape_of, whole
from tests.unit.models.tiny import VOCABULARY, relative_error, tiny_llama

TOKENS = torch.arange(3, VOCABULARY)[None]


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def wide():
    """The inputs of o_proj and down_proj are no multiples of 64."""
    return tiny_llama(width=64)


def rounded():
    model = wide()
    round_weights(model.base_model)
    return model


def test_layers_in_4_bits_compute_with_the_rounded_weights_and_take_an_eighth_of_float32():
    model, plain = wide(), wide()
    quantise(model.base_model)
    torch.testing.assert_close(logits(model), logits(rounded()), rtol=0, atol=1e-5)
    for (name, seen), (_, right), (_, exact) in zip(
        model.named_parameters(), rounded().named_parameters(), plain.named_parameters(), strict=True
    ):
        assert shape_of(seen) == right.shape
        assert torch.equal(whole(seen, seen.detach()), right), name
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            assert seen.dtype == torch.uint8 and seen.nbytes * 8 == exact.nbytes
            assert 0.05 < relative_error(right.detach(), exact.detach()) < 0.12
        else:
            assert torch.equal(seen, exact)


def test_adapters_are_trained_over_weights_in_4_bits():
    model = wide().requires_grad_(False)
    inject(model.base_model, Lora(rank=4, quantise="nf4"), seed=0, key="model.path")
    torch.testing.assert_close(logits(model), logits(rounded()), rtol=0, atol=1e-5)
    model(input_ids=TOKENS).logits.sum().backward()
    assert {name for name, each in model.named_parameters() if each.grad is not None} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    with adapters_off(model):
        torch.testing.assert_close(logits(model), logits(rounded()), rtol=0, atol=1e-5)


def test_a_layer_in_4_bits_keeps_its_bias():
    torch.manual_seed(0)
    small, right = torch.nn.Sequential(torch.nn.Linear(64, 8)), torch.nn.Sequential(torch.nn.Linear(64, 8))
    right.load_state_dict(small.state_dict())
    quantise(small)
    round_weights(right)
    inputs = torch.randn(3, 64)
    torch.testing.assert_close(small(inputs), right(inputs), rtol=0, atol=1e-5)
    assert right[0].bias.abs().max() > 0.05
