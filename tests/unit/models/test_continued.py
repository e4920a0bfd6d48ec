import pytest
import torch

from ray_rl.config.adapter import Lora
from ray_rl.errors import DataError
from ray_rl.models.adapter import adapters_off, inject, is_adapter, is_copy
from ray_rl.models.continued import as_at_start, keep_copy, load_values, require_fit, shapes_of
from ray_rl.models.quantised import round_weights
from tests.adapter_folder import peft_model, write_adapters
from tests.unit.models.tiny import VOCABULARY, tiny_llama

TOKENS = torch.arange(3, VOCABULARY)[None]
LORA = Lora(rank=4, alpha=8, targets=["q_proj", "down_proj"])
WIDE = 64


@pytest.fixture
def folder(tmp_path):
    return write_adapters(tmp_path / "adapters", tiny_llama(), base="tiny")


def continued(folder, lora=LORA, *, copy=True, **settings):
    model = tiny_llama(**settings).requires_grad_(False)
    inject(model.base_model, lora, seed=0, key="model.path")
    load_values(model.base_model, str(folder))
    if copy:
        keep_copy(model.base_model, lora)
    return model


def logits(model):
    return model(input_ids=TOKENS).logits


def change(model):
    with torch.no_grad():
        for name, each in model.named_parameters():
            if is_adapter(name):
                each.add_(0.1)


def test_the_model_and_its_gradients_are_those_of_peft(folder):
    model, peft = continued(folder), peft_model(tiny_llama())
    assert torch.equal(logits(model), logits(peft))
    for each in (model, peft):
        logits(each).log_softmax(-1)[..., 5].sum().backward()
    expected = {name.removeprefix("base_model.model."): each.grad for name, each in peft.named_parameters()}
    trained = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 2 * 2
    for name, gradient in trained.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6)


def test_the_start_is_kept_while_the_adapters_learn(folder):
    model, start = continued(folder), logits(peft_model(tiny_llama()))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert all(map(is_adapter, trained))
    change(model)
    learnt = logits(model)
    assert (learnt - start).abs().max() > 0.1
    with as_at_start(model):
        assert torch.equal(logits(model), start)
    with adapters_off(model):
        assert torch.equal(logits(model), logits(tiny_llama()))
    assert torch.equal(logits(model), learnt)
    assert trained == {name for name, each in model.named_parameters() if each.requires_grad}
    assert sum(map(is_copy, dict(model.named_parameters()))) == len(trained)


def test_without_a_copy_the_start_is_the_model_without_adapters(folder):
    model = continued(folder, copy=False)
    with as_at_start(model):
        assert torch.equal(logits(model), logits(tiny_llama()))


def test_the_copy_draws_no_random_numbers(folder):
    model = continued(folder, copy=False)
    before = torch.random.get_rng_state()
    keep_copy(model.base_model, LORA)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_over_weights_in_4_bits_the_values_are_those_of_the_folder_too(tmp_path):
    write_adapters(tmp_path / "adapters", tiny_llama(width=WIDE), base="tiny")
    model = continued(tmp_path / "adapters", LORA.model_copy(update={"quantise": "nf4"}), width=WIDE)
    rounded = tiny_llama(width=WIDE)
    round_weights(rounded.base_model)
    expected = logits(peft_model(rounded))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    change(model)
    with as_at_start(model):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)


def test_a_folder_of_another_model_is_refused(folder):
    with pytest.raises(DataError, match=r"it has \S*down_proj.lora_A.weight of shape \[4, 48\] in place of \[4, 96\]"):
        require_fit(str(folder), shapes_of(tiny_llama(width=WIDE).base_model, LORA.model_copy(update={"rank": 4})))
    with pytest.raises(
        DataError, match=r"model\.adapter\.path=.*has no base_model\.model\.model\.layers\.0\.\S*k_proj"
    ):
        continued(folder, LORA.model_copy(update={"targets": ["q_proj", "down_proj", "k_proj"]}))
    with pytest.raises(DataError, match=r"it has base_model\.model\.model\.layers\.0\.\S*down_proj"):
        continued(folder, LORA.model_copy(update={"targets": ["q_proj"]}))


def test_the_shapes_before_and_after_adapters_are_added_are_the_same(folder):
    require_fit(str(folder), shapes_of(tiny_llama().base_model, LORA))
