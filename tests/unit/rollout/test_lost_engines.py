"""Prompts to groups over scripted engines that die and come back."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_rl.app.build import build_collector, sampling_of
from ray_rl.config import RunConfig
from ray_rl.data.ends import Ends
from ray_rl.errors import ClusterError, EngineError, EngineLost
from ray_rl.metrics.metric import Last
from ray_rl.rollout.episodes import SingleTurn
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.router import Router
from ray_rl.types import Prompt
from tests.algorithm import algorithm

GROUP = 2


class Source:
    """Prompts 0, 1, 2, ..."""

    def __init__(self):
        self.taken = 0

    def state(self):
        return {"taken": self.taken}

    def take(self, count):
        self.taken += count
        return [Prompt(f"p/{number}", (1, 2), "?") for number in range(self.taken - count, self.taken)]

    def metrics(self):
        return []


class Judge:
    """Counts how often a prompt is scored."""

    def __init__(self):
        self.scored = []

    async def score(self, group):
        self.scored.append(group.prompt.id)
        return replace(group, rollouts=[replace(each, reward=0.0) for each in group.rollouts]), []

    def metrics(self):
        return []


class Engine:
    """Answers when it is told to; from its death until its return it must not be asked."""

    def __init__(self, completion):
        self._completion = completion
        self.is_alive = True
        self.requests = []
        """All that it was asked, in all its lives."""
        self.waiting = {}

    async def generate(self, request):
        assert self.is_alive, "asked while it was in quarantine"
        assert request.id not in self.waiting
        self.requests.append(request)
        answer = self.waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            await answer
        finally:
            del self.waiting[request.id]
        return [replace(self._completion(request.id), versions=np.zeros(3, np.int32)) for _ in range(request.samples)]

    def answer(self, choice):
        open_requests = [answer for answer in self.waiting.values() if not answer.done()]
        if open_requests:
            open_requests[choice % len(open_requests)].set_result(None)

    def die(self):
        self.is_alive = False
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_exception(EngineLost("rollout died"))


class Trial:
    """A collector over engines that a script moves."""

    def __init__(self, completion, *, engines, prompts=2, staleness=0, timeout_s=1000.0):
        self.engines = [Engine(completion) for _ in range(engines)]
        self.router, self.judge = Router(engines), Judge()
        config = RunConfig.model_validate(
            {
                "run": {"name": "test", "steps": 1},
                "model": {"path": "tiny"},
                "data": {"kind": "addition"},
                "rewards": [{"kind": "number"}],
                "algorithm": algorithm(group_size=GROUP, prompts_per_step=prompts),
                "rollout": {"max_tokens": 10, "max_staleness": staleness, "timeout_s": timeout_s},
            }
        )
        pool = EnginePool(self.engines, timeout_s=config.rollout.timeout_s, router=self.router)
        episodes = SingleTurn(pool, sampling_of(config, Ends((), ())))
        self.taker = build_collector(config, Source(), pool, episodes, self.judge)
        self.trained = []

    def take(self):
        return asyncio.ensure_future(self.taker.take(step=len(self.trained), progress=lambda text: None))

    def kill(self, index):
        """What dies is quarantined by whoever notices first: health, or the collector when a request fails."""
        if self.engines[index].is_alive:
            self.engines[index].die()
            if not self.engines[index].waiting:
                self.router.quarantine(index)

    def bring_back(self, index):
        if not self.engines[index].is_alive:
            self.engines[index].is_alive = True
            self.router.release(index)


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_requests_of_an_engine_that_dies_go_to_the_others_with_the_same_seeds(completion):
    trial = Trial(completion, engines=2, prompts=4)
    taking = trial.take()
    await settled()
    lost = list(trial.engines[0].requests)
    assert len(lost) == 2
    trial.kill(0)
    await settled()
    assert trial.engines[1].requests[2:] == lost
    assert trial.router.outstanding == (0, 4 * (GROUP * 10 + 2))
    for _ in range(4):
        trial.engines[1].answer(0)
        await settled()
    groups, metrics = await taking
    assert [group.prompt.id for group in groups] == [f"p/{i}" for i in range(4)]
    assert Last("engines/alive", 1) in metrics


async def test_with_no_engine_left_requests_wait_for_one_that_comes_back(completion):
    trial = Trial(completion, engines=1)
    taking = trial.take()
    await settled()
    asked = list(trial.engines[0].requests)
    trial.kill(0)
    await settled()
    assert not taking.done()
    trial.bring_back(0)
    await settled()
    assert trial.engines[0].requests[2:] == asked
    for _ in range(2):
        trial.engines[0].answer(0)
        await settled()
    assert len((await taking)[0]) == 2


async def test_when_none_will_come_back_the_run_ends_with_the_reason(completion):
    trial = Trial(completion, engines=1)
    taking = trial.take()
    await settled()
    trial.kill(0)
    await settled()
    error = ClusterError("no engine is left")
    trial.router.close(error)
    with pytest.raises(ClusterError) as raised:
        await taking
    assert raised.value is error


async def test_an_error_that_is_not_a_death_ends_the_run_and_is_not_tried_elsewhere(completion):
    trial = Trial(completion, engines=2, prompts=1)
    taking = trial.take()
    await settled()
    error = EngineError("request 0/0: vLLM returned 0 of 2 completions; see the engine's log")
    next(iter(trial.engines[0].waiting.values())).set_exception(error)
    with pytest.raises(EngineError) as raised:
        await taking
    assert raised.value is error
    assert trial.engines[1].requests == []
    assert trial.router.quarantined == ()


EVENTS = st.tuples(st.sampled_from(["answer"] * 4 + ["kill", "kill", "bring_back"]), st.integers(0, 30))


@given(engines=st.integers(1, 4), prompts=st.integers(1, 4), staleness=st.integers(0, 2), script=st.lists(EVENTS))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whichever_engines_die_when_no_group_is_lost_or_trained_twice(completion, engines, prompts, staleness, script):
    steps = 3

    async def drive():
        trial = Trial(completion, engines=engines, prompts=prompts, staleness=staleness)
        taking = trial.take()
        await settled()
        at_the_end = [(event, i) for i in range(200) for event in ("bring_back", "answer")]
        for event, choice in [*script, *at_the_end]:
            index = choice % engines
            match event:
                case "answer":
                    trial.engines[index].answer(choice)
                case "kill":
                    trial.kill(index)
                case "bring_back":
                    trial.bring_back(index)
            await settled()
            if taking.done():
                trial.trained.append([group.prompt.id for group in taking.result()[0]])
                if len(trial.trained) == steps:
                    break
                taking = trial.take()
                await settled()
        assert trial.trained == [[f"p/{s * prompts + i}" for i in range(prompts)] for s in range(steps)]
        assert len(trial.judge.scored) == len(set(trial.judge.scored))
        seeds = {(request.id, request.sampling.seed) for engine in trial.engines for request in engine.requests}
        assert len(seeds) == len({request_id for request_id, _ in seeds})
        async with trial.taker.running():
            pass

    asyncio.run(drive())
