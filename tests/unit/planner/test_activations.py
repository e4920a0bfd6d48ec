import pytest

from ray_rl.catalog.shapes import ModelShape
from ray_rl.planner.activations import (
    BLOCK_ELEMENTS,
    frozen_activations,
    layer_bytes,
    logits_bytes,
    trained_activations,
    working_bytes,
)

SHAPE = ModelShape(
    hidden=10,
    layers=3,
    heads=2,
    kv_heads=1,
    head=5,
    intermediate=20,
    vocabulary=100,
    context_tokens=64,
    tied=False,
)


def test_what_a_layer_keeps_of_a_token():
    norms, attention, mlp = 2 * (4 + 4) * 10, 2 * (2 * 10 + 2 * 5) + 4 * 2, 4 * 2 * 20
    assert layer_bytes(SHAPE, 2) == norms + attention + mlp


def test_what_comes_and_goes_of_a_token():
    assert working_bytes(SHAPE, 2) == 2 * (3 * 20 + 4 * 10)


def test_every_layer_keeps_its_own_unless_it_is_computed_again():
    ends = (4 + 4) * 10 + 2 * 10 + working_bytes(SHAPE, 2)
    whole = trained_activations(SHAPE, tokens=7, element=2, residual=4, checkpointing=False)
    again = trained_activations(SHAPE, tokens=7, element=2, residual=4, checkpointing=True)
    assert whole == 7 * (3 * layer_bytes(SHAPE, 2) + ends)
    assert again == 7 * (3 * 4 * 10 + layer_bytes(SHAPE, 2) + ends)


def test_a_pass_without_gradients_keeps_nothing_of_earlier_layers():
    assert frozen_activations(SHAPE, tokens=7, element=2) == 7 * (2 * 10 + 8 * 10 + working_bytes(SHAPE, 2))


@pytest.mark.parametrize(("chunk", "rows"), [(4, 4), (1024, 7)])
def test_logits_exist_for_one_chunk(chunk, rows):
    logits = rows * 100
    settings = {"tokens": 7, "chunk": chunk, "element": 2, "accelerator": "gpu"}
    frozen = logits_bytes(SHAPE, **settings, is_trained=False)
    assert frozen == 2 * logits + 8 * logits
    assert logits_bytes(SHAPE, **settings, is_trained=True) == frozen + 2 * 2 * 100 * 10


def test_the_float32_copy_is_of_a_block_only():
    tokens = BLOCK_ELEMENTS["cpu"]
    found = logits_bytes(SHAPE, tokens=tokens, chunk=tokens, element=2, accelerator="cpu", is_trained=False)
    assert found == 2 * 100 * tokens + 8 * BLOCK_ELEMENTS["cpu"]


def test_the_blocks_are_those_of_the_loss():
    from ray_rl.algorithms.logprobs import CPU_BLOCK_ELEMENTS, DEVICE_BLOCK_ELEMENTS

    assert BLOCK_ELEMENTS == {"cpu": CPU_BLOCK_ELEMENTS, "gpu": DEVICE_BLOCK_ELEMENTS}
