"""Prompts to scored groups, over scripted engines."""

import asyncio

import pytest

from ray_rl.config import RunConfig
from ray_rl.errors import EngineError, RewardError
from ray_rl.metrics.metric import Last, Total
from ray_rl.rollout.collector import Collector
from ray_rl.types import Prompt, Rollout, RolloutGroup


class Source:
    """Prompts of given lengths, again and again."""

    def __init__(self, lengths):
        self._lengths = lengths
        self.taken = 0

    def take(self, count):
        numbers = range(self.taken, self.taken + count)
        self.taken += count
        return [
            Prompt(f"p/{number}", tuple(range(self._lengths[number % len(self._lengths)])), f"question {number}")
            for number in numbers
        ]

    def metrics(self):
        return [Last("data/epoch", 0)]


class Engine:
    """Answers a request when `let` is called with its prompt's number, or at once."""

    def __init__(self, name, completion, *, at_once=True, error=None):
        self.name = name
        self.requests = []
        self.cancelled = 0
        self._completion = completion
        self._at_once = at_once
        self._error = error
        self._gates = {}

    def gate(self, request_id):
        return self._gates.setdefault(request_id, asyncio.Event())

    async def generate(self, request):
        self.requests.append(request)
        try:
            if not self._at_once:
                await self.gate(request.id).wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self._error is not None:
            raise self._error
        return [self._completion(f"{request.id} by {self.name}, {g}") for g in range(request.samples)]


class Rewards:
    def __init__(self, error=None):
        self._error = error

    async def ascore(self, prompt, completions):
        if self._error is not None:
            raise self._error
        rollouts = [Rollout(completion, 1.0, {"one": 1.0}) for completion in completions]
        return RolloutGroup(prompt, rollouts), [Total("reward/one_errors", 1)]


def collector(engines, *, lengths=(4,), rewards=None, group_size=2, seed=0):
    config = RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1, "seed": seed},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": {"group_size": group_size},
            "rollout": {"max_tokens": 10},
        }
    )
    return Collector(config, Source(lengths), engines, rewards or Rewards())


def ignore(_text):
    return None


async def test_groups_come_in_the_order_of_the_prompts_although_engines_answer_in_another(completion):
    engine = Engine("e", completion, at_once=False)
    taking = asyncio.create_task(collector([engine]).take(3, step=5, progress=ignore))
    for request_id in ("5/2", "5/0", "5/1"):
        await asyncio.sleep(0.01)
        engine.gate(request_id).set()
    groups, _ = await taking
    assert [group.prompt.id for group in groups] == ["p/0", "p/1", "p/2"]
    assert [group.rollouts[1].completion.text for group in groups] == [f"5/{i} by e, 1" for i in range(3)]


async def test_requests_are_spread_by_the_tokens_they_may_cost(completion):
    engines = [Engine("a", completion, at_once=False), Engine("b", completion, at_once=False)]
    # A request may cost 2 * 10 sampled tokens and its prompt: 120, 21, 21, 21, 21, 21 and 21.
    taking = asyncio.create_task(collector(engines, lengths=(100, 1, 1, 1, 1, 1, 1)).take(7, step=0, progress=ignore))
    await asyncio.sleep(0.01)
    assert [request.id for request in engines[0].requests] == ["0/0"]
    assert [request.id for request in engines[1].requests] == [f"0/{i}" for i in range(1, 7)]
    for engine in engines:
        for request in engine.requests:
            engine.gate(request.id).set()
    await taking


async def test_every_request_has_its_own_id_and_seed_and_asks_for_a_group(completion):
    engines = [Engine("a", completion), Engine("b", completion)]
    taker = collector(engines, group_size=3)
    for step in range(2):
        await taker.take(4, step=step, progress=ignore)
    requests = [request for engine in engines for request in engine.requests]
    assert {request.id for request in requests} == {f"{step}/{index}" for step in range(2) for index in range(4)}
    assert len({request.seed for request in requests}) == 8
    assert {request.samples for request in requests} == {3}


async def test_the_same_run_asks_with_the_same_seeds_whatever_the_number_of_engines(completion):
    seeds = []
    for count in (1, 3):
        engines = [Engine(str(i), completion) for i in range(count)]
        await collector(engines, seed=7).take(6, step=2, progress=ignore)
        seeds.append({request.id: request.seed for engine in engines for request in engine.requests})
    assert seeds[0] == seeds[1]


async def test_a_failing_engine_ends_the_wait_with_its_error_and_the_other_requests_are_dropped(completion):
    error = EngineError("the engine died")
    slow, broken = Engine("slow", completion, at_once=False), Engine("broken", completion, error=error)
    with pytest.raises(EngineError) as raised:
        async with asyncio.timeout(5):
            await collector([slow, broken]).take(4, step=0, progress=ignore)
    await asyncio.sleep(0)
    assert raised.value is error
    assert slow.cancelled == len(slow.requests) > 0


async def test_a_failing_reward_ends_the_wait_with_its_error(completion):
    error = RewardError("the function raised")
    with pytest.raises(RewardError) as raised:
        await collector([Engine("e", completion)], rewards=Rewards(error)).take(2, step=0, progress=ignore)
    assert raised.value is error


async def test_progress_counts_completions_that_are_scored(completion):
    texts = []
    await collector([Engine("e", completion)]).take(3, step=0, progress=texts.append)
    assert texts == [f"{done} of 6 completions" for done in (0, 2, 4, 6)]


async def test_metrics_are_those_of_the_rewards_and_of_the_source(completion):
    _, metrics = await collector([Engine("e", completion)]).take(2, step=0, progress=ignore)
    assert metrics == [Total("reward/one_errors", 1), Total("reward/one_errors", 1), Last("data/epoch", 0)]
