"""Reward models as a judge, and the queue before them, over scripted models."""

import asyncio

import numpy as np
import pytest
from pydantic import TypeAdapter

from ray_rl.config.rewards import ModelReward, RewardConfig
from ray_rl.errors import ClusterError, RewardError
from ray_rl.metrics.metric import Last, Mean, Total
from ray_rl.rewards.combine import build_rewards
from ray_rl.rewards.model.judge import ModelJudge
from ray_rl.rewards.model.queue import ScoreQueue
from ray_rl.types import Message, Prompt, Turn
from tests.make import completion, group, rollout

PROMPT = Prompt("p/1", (1, 2), "What is 1+2?", {"answer": "3"}, (Message("user", "What is 1+2?"),))


class Models:
    """Two models: the first scores a conversation with its number, the second with twice that."""

    def __init__(self, *bad):
        self.read = []
        self._bad = bad

    async def scores(self, conversations):
        self.read += conversations
        numbers = np.arange(len(conversations), dtype=np.float32)
        scores_MR = np.stack([numbers, 2 * numbers])
        scores_MR[1, list(self._bad)] = np.nan
        return scores_MR, [Last("reward/model_truncated_fraction", 0.0)]


def judged(models, *rollouts, **settings):
    judge = ModelJudge(ModelReward(paths=["a", "b"], **settings), models)
    return asyncio.run(judge.judge(group(*rollouts, prompt=PROMPT)))


def test_models_read_the_whole_conversation_of_an_episode():
    models = Models()
    judged(models, rollout(completion(1, "1"), Turn((7,), completion(1, "3"), messages=(Message("tool", "2"),))))
    (read,) = models.read
    assert [(message.role, message.content) for message in read] == [
        ("user", "What is 1+2?"),
        ("assistant", "1"),
        ("tool", "2"),
        ("assistant", "3"),
    ]


def test_an_ensemble_gives_one_score_and_says_how_far_its_models_differ():
    judgements = judged(Models(), completion(), completion(), completion(), combine={"kind": "min"})
    assert [judgement.score for judgement in judgements] == [0.0, 1.0, 2.0]
    metrics = [metric for judgement in judgements for metric in judgement.metrics]
    assert metrics == [Last("reward/model_truncated_fraction", 0.0), Mean("reward/model_std", 1.5, 3)]


def test_a_score_of_nan_names_the_model_the_prompt_and_the_completion():
    with pytest.raises(RewardError) as raised:
        judged(Models(1), completion(), completion(3, "it is 9"))
    assert str(raised.value).startswith(
        "the reward model b gave completion 1 of 2 of prompt p/1 the score nan. The completion is 'it is 9'. Try "
    )


def test_a_score_of_nan_may_be_skipped_and_is_counted():
    judgements = judged(Models(1), completion(), completion(), on_error="skip")
    assert [judgement.score for judgement in judgements] == [0.0, None]
    assert Total("reward/model_errors", 1) in judgements[0].metrics


def test_the_score_joins_those_of_functions_by_weight_in_the_order_of_the_configuration():
    length = {"kind": "length", "target": 2, "weight": 0.5}
    config = make_parts(length, {"kind": "model", "paths": ["a", "b"], "weight": 10.0})
    scored, _ = asyncio.run(build_rewards(config, models=Models()).score(group(completion(2), completion(4))))
    assert [each.reward for each in scored.rollouts] == [0.0, 0.5 * -1.0 + 10.0 * 1.5]
    assert [list(each.reward_parts.items()) for each in scored.rollouts] == [
        [("length", -0.0), ("model", 0.0)],
        [("length", -1.0), ("model", 1.5)],
    ]


def make_parts(*sections):
    return TypeAdapter(list[RewardConfig]).validate_python(list(sections))


class Worker:
    """Scores a conversation with the length of its text, once it is told to."""

    def __init__(self):
        self.calls = []
        self.go = asyncio.Event()
        self.error = None

    async def scores(self, conversations):
        self.calls.append([conversation[0].content for conversation in conversations])
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return np.array([[len(each[0].content) for each in conversations]], np.float32), [Last("calls", 1)]


def talk(*texts):
    return [(Message("user", text),) for text in texts]


async def test_what_waits_while_a_call_runs_goes_into_the_next_one():
    worker = Worker()
    queue = ScoreQueue(worker.scores)
    asked = [asyncio.create_task(queue.scores(talk(*texts))) for texts in (("a",), ("bb", "c"), ("dddd",))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = asyncio.create_task(queue.scores(talk("eee")))
    await asyncio.sleep(0)
    worker.go.set()
    found = [await each for each in (*asked, late)]
    assert worker.calls == [["a", "bb", "c", "dddd"], ["eee"]]
    assert [scores.tolist() for scores, _ in found] == [[[1.0]], [[2.0, 1.0]], [[4.0]], [[3.0]]]
    assert [metrics for _, metrics in found] == [[Last("calls", 1)], [], [], [Last("calls", 1)]]


async def test_a_call_that_fails_fails_for_all_in_it_and_for_nobody_after():
    worker = Worker()
    queue = ScoreQueue(worker.scores)
    worker.error = ClusterError("reward-0 died")
    worker.go.set()
    results = await asyncio.gather(queue.scores(talk("a")), queue.scores(talk("b")), return_exceptions=True)
    assert [str(result) for result in results] == ["reward-0 died"] * 2
    worker.error = None
    assert (await queue.scores(talk("cc")))[0].tolist() == [[2.0]]


async def test_a_request_that_is_cancelled_takes_nothing_from_the_others():
    worker = Worker()
    queue = ScoreQueue(worker.scores)
    first, second = (asyncio.create_task(queue.scores(talk(text))) for text in ("a", "bb"))
    await asyncio.sleep(0)
    first.cancel()
    worker.go.set()
    scores, metrics = await second
    assert (scores.tolist(), metrics) == ([[2.0]], [Last("calls", 1)])


async def test_a_call_that_is_cancelled_leaves_nobody_waiting():
    worker = Worker()
    queue = ScoreQueue(worker.scores)
    worker.error = asyncio.CancelledError()
    worker.go.set()
    asked = asyncio.create_task(queue.scores(talk("a")))
    await asyncio.wait({asked}, timeout=5)
    assert asked.cancelled()
    worker.error = None
    assert (await queue.scores(talk("cc")))[0].tolist() == [[2.0]]
