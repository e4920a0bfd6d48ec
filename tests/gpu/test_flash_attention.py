"""Packed rows with flash-attn against one pass a sequence with the reference attention, in float32 on the CPU."""

from importlib.util import find_spec

import pytest
import torch

from tests.unit.models.tiny import BFLOAT16, errors_of_packing, ragged_batch

pytestmark = pytest.mark.gpu(1)


def test_flash_attn_is_installed():
    assert find_spec("flash_attn") is not None, 'pip install --no-build-isolation "ray-rl[flash-attn]"'


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("gaps", [True, False])
def test_rows_give_the_logprobs_and_gradients_of_separate_sequences(packing, gaps):
    batch = ragged_batch(gaps=gaps)
    errors = errors_of_packing("flash_attention_2", batch, packing=packing, dtype=torch.bfloat16, device="cuda")
    assert all(error < bound for error, bound in zip(errors, BFLOAT16, strict=True)), errors
