from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_rl.batching.encoding import Encoded, Split, encode
from ray_rl.batching.micro_batches import Tree
from tests.unit.models.tiny import ragged_batch

BATCH = ragged_batch((5, 2, 7), (3, 6, 1, 4, 4, 2))
MICRO = (Tree(2, (4, 5)), Tree(0, (1,)), Tree(1, (2, 3)), Tree(0, (0,)))


def sequences_seen(encoded: Encoded) -> dict[tuple[int, int], list[int]]:
    """By loss token (row, time), the tokens that its prediction is made from, last first, and the label: a slow loop.

    A position before a token's own is its context: for trees, back to the start of its completion, then its prompt.
    """
    inputs = encoded.inputs
    flat, positions = inputs.tokens_BL.flatten().tolist(), inputs.positions_BL.flatten().tolist()
    seen = {}
    for row, time, index, label in zip(
        encoded.row_N, encoded.time_N, inputs.predict_N.tolist(), inputs.labels_N.tolist(), strict=True
    ):
        context, position = [flat[index]], positions[index]
        for token, before in zip(reversed(flat[:index]), reversed(positions[:index]), strict=True):
            if before == position - 1:
                context.append(token)
                position = before
        seen[int(row), int(time)] = [label, *context]
    return seen


def sequences_meant() -> dict[tuple[int, int], list[int]]:
    meant = {}
    for row in (0, 1, 2, 3, 4, 5):
        whole = [*BATCH.prompt_ids[row // 2].tolist(), *BATCH.tokens_RT[row].tolist()]
        prompt = len(BATCH.prompt_ids[row // 2])
        for time in np.flatnonzero(BATCH.loss_mask_RT[row]):
            meant[row, int(time)] = whole[: prompt + time + 1][::-1]
    return meant


@pytest.mark.parametrize("packing", ["padded", "packed", "shared_prefix"])
def test_every_loss_token_is_predicted_from_its_prompt_and_its_own_earlier_tokens(packing):
    assert sequences_seen(encode(BATCH, MICRO, packing=packing)) == sequences_meant()


@pytest.mark.parametrize("packing", ["padded", "packed", "shared_prefix"])
def test_values_are_picked_in_the_order_of_the_labels(packing):
    encoded = encode(BATCH, MICRO, packing=packing)
    assert torch.equal(encoded.pick(BATCH.tokens_RT.astype(np.float32)).long(), encoded.inputs.labels_N)


def test_trees_are_one_row_without_padding():
    encoded = encode(BATCH, MICRO, packing="shared_prefix")
    # Prompt 0 twice, since its rows are in two trees; every other token once.
    assert encoded.inputs.tokens_BL.shape == (1, 5 + 2 + 7 + 5 + BATCH.lengths_R.sum())
    assert encoded.tokens == encoded.inputs.tokens_BL.numel()
    assert encoded.inputs.attention_mask_BL is None


def test_padded_rows_are_masked_past_their_end():
    encoded = encode(BATCH, MICRO, packing="padded")
    lengths = [7 + 4, 7 + 2, 5 + 6, 2 + 1, 2 + 4, 5 + 3]
    assert encoded.inputs.attention_mask_BL.sum(1).tolist() == lengths
    assert encoded.inputs.tokens_BL.shape == (6, max(lengths))
    assert encoded.tokens == sum(lengths)
    assert encoded.inputs.layout is None


def test_a_slot_holds_its_token_and_padding_is_marked():
    layout = encode(BATCH, (Tree(0, (0, 1)), Tree(1, (2,))), packing="shared_prefix").inputs.layout
    prompts, completions = layout.is_token[:10].view(2, 5), layout.is_token[10:].view(2, 2, 6)
    assert prompts.sum(1).tolist() == [5, 2]
    assert completions.sum(2).tolist() == [[3, 6], [1, 0]]
    assert layout.token_of_slot[layout.is_token].tolist() == [*range(5), 14, 15, *range(5, 14), 16]


@pytest.mark.parametrize("packing", ["padded", "packed", "shared_prefix"])
def test_an_empty_micro_batch_has_tokens_but_no_loss(packing):
    encoded = encode(BATCH, (), packing=packing)
    assert encoded.inputs.tokens_BL.numel() == 2
    assert len(encoded.inputs.predict_N) == len(encoded.inputs.labels_N) == len(encoded.row_N) == encoded.tokens == 0


@pytest.mark.parametrize("packing", ["padded", "packed", "shared_prefix"])
def test_an_empty_prompt_is_refused_as_the_end_of_another_sequence_would_predict_its_answer(packing):
    batch = replace(BATCH, prompt_ids=(*BATCH.prompt_ids[:2], np.zeros(0, np.int32)))
    with pytest.raises(ValueError, match="prompt 2 of the batch has no tokens"):
        encode(batch, MICRO, packing=packing)


@pytest.mark.parametrize("packing", ["padded", "packed", "shared_prefix"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_worker_has_as_many_micro_batches_and_every_loss_token_is_in_one(workers, packing):
    split = Split(workers=workers, micro_batch_tokens=16, packing=packing)
    shares = [split.encode(BATCH, np.arange(6), rank=rank) for rank in range(workers)]
    assert len({len(share) for share in shares}) == 1
    count_RT = np.zeros(BATCH.tokens_RT.shape, int)
    for encoded in (encoded for share in shares for encoded in share):
        count_RT[encoded.row_N, encoded.time_N] += 1
    assert np.array_equal(count_RT, BATCH.loss_mask_RT)
