"""Shared prefixes change the work, not the result: log-probabilities and gradients against one pass per sequence."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_rl.batching.encoding import encode
from ray_rl.batching.micro_batches import MicroBatch, Tree
from ray_rl.config.train import Packing
from ray_rl.errors import ConfigError
from ray_rl.models.attention import BLOCK, CHANGES_SCORES, SHARED_PREFIX, shared_prefix_attention, tree_layout
from ray_rl.models.policy import PolicyModel
from ray_rl.models.residual import keep_residual_in_float32
from ray_rl.types import TrainBatch
from tests.unit.models.tiny import (
    BFLOAT16,
    errors_of_packing,
    gradients,
    one_by_one,
    ragged_batch,
    relative_error,
    tiny_llama,
)

EXACT = 1e-5
"""Relative error allowed to float32; what is seen is below 1e-6."""

BATCHES = {
    "ragged prompts and completions, gaps in the loss mask": ragged_batch(),
    "equal lengths": ragged_batch((4, 4), (3, 3, 3, 3), gaps=False),
    "one tree": ragged_batch((6,), (2, 5, 3)),
    "one completion a prompt": ragged_batch((3, 5), (4, 2)),
    "one completion of one token": ragged_batch((3,), (1,)),
    "prompts of one token": ragged_batch((1, 1), (3, 2, 5, 1)),
}


def whole(batch: TrainBatch) -> MicroBatch:
    size = batch.group_size
    return tuple(Tree(p, tuple(range(p * size, (p + 1) * size))) for p in range(len(batch.prompt_ids)))


def losses_of_policy(
    model: torch.nn.Module, batch: TrainBatch, micro: MicroBatch, *, packing: Packing = "shared_prefix"
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the loss tokens as the trainer computes them, and the same from the reference's array."""
    policy = PolicyModel(model, chunk_tokens=4, temperature=1.0)
    encoded = encode(batch, micro, packing=packing)
    logprobs_N, _ = policy(encoded.inputs, with_entropy=True)
    (logprobs_N * encoded.pick(batch.advantages_RT)).sum().backward()
    reference = tiny_llama()
    expected_RT = one_by_one(reference, batch)
    (expected_RT * torch.from_numpy(batch.advantages_RT * batch.loss_mask_RT)).sum().backward()
    assert len(logprobs_N) == batch.loss_mask_RT.sum()
    assert relative_error(gradients(model), gradients(reference)) < EXACT
    return logprobs_N, expected_RT[encoded.row_N, encoded.time_N]


@pytest.mark.parametrize("name", BATCHES)
def test_shared_prefixes_give_the_logprobs_and_gradients_of_separate_sequences(name: str) -> None:
    batch = BATCHES[name]
    logprobs_N, expected_N = losses_of_policy(tiny_llama(SHARED_PREFIX), batch, whole(batch))
    assert torch.allclose(logprobs_N, expected_N, rtol=EXACT, atol=EXACT)


def test_a_prompt_of_several_blocks_gives_the_logprobs_and_gradients_of_separate_sequences() -> None:
    batch = ragged_batch((2 * BLOCK + 3, 5), (4, 2, 3, 1))
    logprobs_N, expected_N = losses_of_policy(tiny_llama(SHARED_PREFIX), batch, whole(batch))
    assert torch.allclose(logprobs_N, expected_N, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", ["padded", "packed"])
@pytest.mark.parametrize("name", BATCHES)
def test_padded_and_packed_rows_give_the_logprobs_and_gradients_of_separate_sequences(
    name: str, packing: Packing, attention: str
) -> None:
    batch = BATCHES[name]
    logprobs_N, expected_N = losses_of_policy(tiny_llama(attention), batch, whole(batch), packing=packing)
    assert torch.allclose(logprobs_N, expected_N, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("packing", ["padded", "packed"])
@pytest.mark.parametrize("name", BATCHES)
def test_rows_in_bfloat16_are_as_near_to_separate_sequences_as_bfloat16_allows(name: str, packing: Packing) -> None:
    """The GPU's test of flash-attn (tests/gpu) with SDPA in its place."""
    errors = errors_of_packing("sdpa", BATCHES[name], packing=packing, dtype=torch.bfloat16)
    assert all(error < bound for error, bound in zip(errors, BFLOAT16, strict=True)), errors


@pytest.mark.parametrize("attention", [SHARED_PREFIX, "sdpa"])
def test_gradient_checkpointing_changes_nothing(attention: str) -> None:
    model = tiny_llama(attention).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = ragged_batch()
    packing: Packing = "shared_prefix" if attention == SHARED_PREFIX else "packed"
    logprobs_N, expected_N = losses_of_policy(model, batch, whole(batch), packing=packing)
    assert torch.allclose(logprobs_N, expected_N, rtol=EXACT, atol=EXACT)


def test_trees_of_different_numbers_of_completions_share_a_row() -> None:
    batch = ragged_batch((5, 2, 7), (3, 6, 1, 4, 4, 2, 5, 5, 1))
    micro = (Tree(0, (0, 2, 1)), Tree(1, (4,)), Tree(2, (8, 6)), Tree(1, (3, 5)), Tree(2, (7,)))
    logprobs_N, expected_N = losses_of_policy(tiny_llama(SHARED_PREFIX), batch, micro)
    assert torch.allclose(logprobs_N, expected_N, rtol=EXACT, atol=EXACT)


def test_completions_do_not_see_each_other_nor_other_trees() -> None:
    batch = ragged_batch()
    changed = ragged_batch()
    changed.tokens_RT[0] = (changed.tokens_RT[0] + 1) % 40
    changed.prompt_ids[2][:] = 3
    policy = PolicyModel(tiny_llama(SHARED_PREFIX), chunk_tokens=64, temperature=1.0)
    encoded = [encode(b, whole(b), packing="shared_prefix") for b in (batch, changed)]
    before, after = (policy(e.inputs, with_entropy=False)[0] for e in encoded)
    others = (encoded[0].row_N != 0) & (encoded[0].row_N < 4)
    assert torch.equal(before[others], after[others])
    assert not torch.isclose(before[~others], after[~others]).any()


@pytest.mark.parametrize("keyword", CHANGES_SCORES)
def test_a_model_that_changes_its_scores_is_refused(keyword: str) -> None:
    x = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ConfigError, match=f"needs {keyword}"):
        shared_prefix_attention(None, x, x, x, None, scaling=1.0, layout=tree_layout([(1, [2])]), **{keyword: 1.0})


def bfloat16_error(attention: str, batch: TrainBatch, *, packing: Packing) -> float:
    """Relative error of the bfloat16 gradient to the float32 one of the same (rounded) weights."""
    model = tiny_llama(attention, dtype=torch.bfloat16)
    if attention == SHARED_PREFIX:
        keep_residual_in_float32(model)  # as the loader does
    exact = tiny_llama()
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    encoded = encode(batch, whole(batch), packing=packing)
    logprobs_N, _ = PolicyModel(model, chunk_tokens=64, temperature=1.0)(encoded.inputs, with_entropy=False)
    (logprobs_N * encoded.pick(batch.advantages_RT)).sum().backward()
    (one_by_one(exact, batch) * torch.from_numpy(batch.advantages_RT * batch.loss_mask_RT)).sum().backward()
    return relative_error(gradients(model), gradients(exact))


def test_the_error_of_bfloat16_is_no_larger_than_that_of_padded_sdpa() -> None:
    batches = [ragged_batch((7, 9, 8, 6), (6, 8, 7, 8) * 4, gaps=False, seed=seed) for seed in range(10)]
    shared = np.mean([bfloat16_error(SHARED_PREFIX, batch, packing="shared_prefix") for batch in batches])
    padded = np.mean([bfloat16_error("sdpa", batch, packing="padded") for batch in batches])
    assert shared <= padded
