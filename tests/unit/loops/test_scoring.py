"""Log-probabilities and values of groups that finish one by one."""

import asyncio
import gc

import numpy as np
import pytest

from ray_rl.batching.pack import pack
from ray_rl.errors import ClusterError
from ray_rl.loops.scoring import AsFinished, AtOnce
from tests.make import completion, group, rollout


class Scorer:
    """Says of each token its own number over a hundred. Each call takes a turn of the loop, or until it may go on."""

    def __init__(self):
        self.calls, self.error, self.gate = [], None, None

    async def logprobs(self, batch):
        self.calls.append(len(batch.prompt_ids))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return np.where(batch.loss_mask_RT, batch.tokens_RT / 100, 0).astype(np.float32)


def made(number, *, lengths=(2, 3), finish_reason="stop"):
    rollouts = [
        rollout(completion([10 * number + i] * length, str(number), finish_reason=finish_reason), reward=1.0)
        for i, length in enumerate(lengths)
    ]
    return group(*rollouts)


GROUPS = [made(1), made(2, lengths=(5, 1)), made(3)]


def expected(batch):
    return np.where(batch.loss_mask_RT, batch.tokens_RT / 100, 0).astype(np.float32)


async def test_groups_that_finished_are_scored_before_the_batch_is_asked_for():
    scorer = Scorer()
    scores = AsFinished(scorer.logprobs, is_frozen=True)
    for each in GROUPS:
        scores.begin(each)
        await asyncio.sleep(0.01)
    assert scorer.calls == [1, 1, 1]
    batch = pack(GROUPS)
    np.testing.assert_array_equal(await scores.of(batch, GROUPS), expected(batch))
    assert scorer.calls == [1, 1, 1]


async def test_all_that_wait_for_a_call_are_in_the_next_one_in_any_order():
    scorer = Scorer()
    scorer.gate = asyncio.Event()
    scores = AsFinished(scorer.logprobs, is_frozen=True)
    scores.begin(GROUPS[2])
    await asyncio.sleep(0)
    scores.begin(GROUPS[1])
    scores.begin(GROUPS[0])
    scorer.gate.set()
    batch = pack(GROUPS)
    np.testing.assert_array_equal(await scores.of(batch, GROUPS), expected(batch))
    assert scorer.calls == [1, 2]


async def test_groups_of_a_checkpoint_that_never_finished_here_are_scored_with_the_batch():
    scorer = Scorer()
    scores = AsFinished(scorer.logprobs, is_frozen=True)
    scores.begin(GROUPS[1])
    batch = pack(GROUPS)
    np.testing.assert_array_equal(await scores.of(batch, GROUPS), expected(batch))
    assert scorer.calls == [1, 2]


async def test_what_has_no_loss_is_0():
    cut_off = [made(1, finish_reason="length"), made(2)]
    scores = AsFinished(Scorer().logprobs, is_frozen=True)
    scores.begin(cut_off[0])
    batch = pack(cut_off, mask_truncated=True)
    found_RT = await scores.of(batch, cut_off)
    assert not found_RT[:2].any()
    np.testing.assert_array_equal(found_RT, expected(batch))


async def test_a_failed_call_is_raised_when_the_batch_is_asked_for_and_not_repeated_by_later_groups():
    scorer = Scorer()
    scorer.error = ClusterError("reference-0 failed")
    scores = AsFinished(scorer.logprobs, is_frozen=True)
    scores.begin(GROUPS[0])
    await asyncio.sleep(0.01)
    scores.begin(GROUPS[1])
    await asyncio.sleep(0.01)
    with pytest.raises(ClusterError, match="reference-0 failed"):
        await scores.of(pack(GROUPS[:2]), GROUPS[:2])
    assert scorer.calls == [1]


async def test_groups_that_nobody_trains_on_are_forgotten():
    scores = AsFinished(Scorer().logprobs, is_frozen=True)
    dropped, kept = made(4), made(5)
    scores.begin(dropped)
    await asyncio.sleep(0.01)
    del dropped
    gc.collect()
    await scores.of(pack([kept]), [kept])
    assert scores._found == {}


async def test_a_model_that_is_trained_scores_groups_of_an_earlier_batch_again():
    scorer = Scorer()
    scores = AsFinished(scorer.logprobs, is_frozen=False)
    for each in GROUPS:
        scores.begin(each)
    await scores.of(pack(GROUPS[:2]), GROUPS[:2])
    assert scorer.calls == [3]
    await scores.of(pack(GROUPS[2:]), GROUPS[2:])
    assert scorer.calls == [3, 1]


async def test_a_whole_batch_is_one_call():
    scorer = Scorer()
    batch = pack(GROUPS)
    np.testing.assert_array_equal(await AtOnce(scorer.logprobs).of(batch, GROUPS), expected(batch))
    assert scorer.calls == [3]
