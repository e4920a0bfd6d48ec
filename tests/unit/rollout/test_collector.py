"""Prompts to scored groups, over scripted engines."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_rl.app.build import build_collector, sampling_of
from ray_rl.config import RunConfig
from ray_rl.config.rewards import ModelReward
from ray_rl.data.ends import Ends
from ray_rl.errors import DataError, EngineError, RewardError
from ray_rl.metrics.metric import Last, Mean, Total
from ray_rl.rewards.combine import build_rewards
from ray_rl.rollout.episodes import SingleTurn
from ray_rl.rollout.pool import EnginePool
from ray_rl.types import Message, Prompt
from tests.algorithm import algorithm


class Source:
    """Prompts of given lengths, again and again."""

    def __init__(self, lengths):
        self._lengths = lengths
        self.taken = 0

    def take(self, count):
        numbers = range(self.taken, self.taken + count)
        self.taken += count
        return [
            Prompt(
                f"p/{number}",
                tuple(range(self._lengths[number % len(self._lengths)])),
                f"question {number}",
                messages=(Message("user", f"question {number}"),),
            )
            for number in numbers
        ]

    def metrics(self):
        return [Last("data/epoch", 0)]

    def state(self):
        return {"taken": self.taken}

    def restore(self, state):
        self.taken = state["taken"]


class Engine:
    """Answers a request when `let` is called with its prompt's number, or at once."""

    def __init__(self, name, completion, *, at_once=True, error=None):
        self.name = name
        self.requests = []
        self.cancelled = 0
        self.version = 0
        self._completion = completion
        self._at_once = at_once
        self._error = error
        self._gates = {}

    def gate(self, request_id):
        return self._gates.setdefault(request_id, asyncio.Event())

    async def generate(self, request):
        self.requests.append(request)
        version = self.version
        try:
            if not self._at_once:
                await self.gate(request.id).wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self._error is not None:
            raise self._error
        texts = [f"{request.id} by {self.name}, {g}" for g in range(request.samples)]
        return [replace(self._completion(text), versions=np.full(3, version, np.int32)) for text in texts]


class Rewards:
    """1 for every completion; of the prompts named, 1 for the first alone."""

    def __init__(self, error=None, informative=()):
        self._error = error
        self._informative = {f"p/{number}" for number in informative}

    async def score(self, group):
        if self._error is not None:
            raise self._error
        differs = group.prompt.id in self._informative
        values = [1.0 if g == 0 or not differs else 0.0 for g in range(len(group.rollouts))]
        pairs = zip(group.rollouts, values, strict=True)
        scored = [replace(each, reward=value, reward_parts={"one": value}) for each, value in pairs]
        return replace(group, rollouts=scored), [Total("reward/one_errors", 1)]

    def metrics(self):
        return [Mean("throughput/reward_one_busy_fraction", 1, 2)]


def collector(
    engines,
    *,
    prompts,
    lengths=(4,),
    rewards=None,
    group_size=2,
    seed=0,
    sampling=None,
    deterministic=False,
    **rollout,
):
    config = RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1, "seed": seed, "deterministic": deterministic},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(group_size=group_size, prompts_per_step=prompts, dynamic_sampling=sampling),
            "rollout": {"max_tokens": 10, **rollout},
        }
    )
    pool = EnginePool(engines, timeout_s=config.rollout.timeout_s)
    episodes = SingleTurn(pool, sampling_of(config, Ends((), ())))
    return build_collector(config, Source(lengths), pool, episodes, rewards or Rewards())


def ignore(_text):
    return None


async def test_groups_come_in_the_order_of_the_prompts_although_engines_answer_in_another(completion):
    engine = Engine("e", completion, at_once=False)
    taking = asyncio.create_task(collector([engine], prompts=3).take(step=5, progress=ignore))
    for request_id in ("0/2", "0/0", "0/1"):
        await asyncio.sleep(0.01)
        engine.gate(request_id).set()
    groups, _ = await taking
    assert [group.prompt.id for group in groups] == ["p/0", "p/1", "p/2"]
    assert [group.rollouts[1].text for group in groups] == [f"0/{i} by e, 1" for i in range(3)]


async def test_requests_are_spread_by_the_tokens_they_may_cost(completion):
    engines = [Engine("a", completion, at_once=False), Engine("b", completion, at_once=False)]
    # A request may cost 2 * 10 sampled tokens and its prompt: 120, 21, 21, 21, 21, 21 and 21.
    taking = asyncio.create_task(
        collector(engines, prompts=7, lengths=(100, 1, 1, 1, 1, 1, 1)).take(step=0, progress=ignore)
    )
    await asyncio.sleep(0.01)
    assert [request.id for request in engines[0].requests] == ["0/0"]
    assert [request.id for request in engines[1].requests] == [f"0/{i}" for i in range(1, 7)]
    for engine in engines:
        for request in engine.requests:
            engine.gate(request.id).set()
    await taking


async def test_every_request_has_its_own_id_and_seed_and_asks_for_a_group(completion):
    engines = [Engine("a", completion), Engine("b", completion)]
    taker = collector(engines, prompts=4, group_size=3)
    for step in range(2):
        await taker.take(step=step, progress=ignore)
    requests = [request for engine in engines for request in engine.requests]
    assert {request.id for request in requests} == {f"{step}/{index}" for step in range(2) for index in range(4)}
    assert len({request.sampling.seed for request in requests}) == 8
    assert {request.samples for request in requests} == {3}


async def test_the_same_run_asks_with_the_same_seeds_whatever_the_number_of_engines(completion):
    seeds = []
    for count in (1, 3):
        engines = [Engine(str(i), completion) for i in range(count)]
        await collector(engines, prompts=6, seed=7).take(step=0, progress=ignore)
        seeds.append({request.id: request.sampling.seed for engine in engines for request in engine.requests})
    assert seeds[0] == seeds[1]


async def test_a_failing_engine_ends_the_wait_with_its_error_and_the_other_requests_are_dropped(completion):
    error = EngineError("the engine died")
    slow, broken = Engine("slow", completion, at_once=False), Engine("broken", completion, error=error)
    with pytest.raises(EngineError) as raised:
        async with asyncio.timeout(5):
            await collector([slow, broken], prompts=4).take(step=0, progress=ignore)
    await asyncio.sleep(0)
    assert raised.value is error
    assert slow.cancelled == len(slow.requests) > 0


async def test_a_failing_reward_ends_the_wait_with_its_error(completion):
    error = RewardError("the function raised")
    with pytest.raises(RewardError) as raised:
        await collector([Engine("e", completion)], prompts=2, rewards=Rewards(error)).take(step=0, progress=ignore)
    assert raised.value is error


async def test_progress_counts_completions_that_are_scored(completion):
    texts = []
    await collector([Engine("e", completion)], prompts=3).take(step=0, progress=texts.append)
    assert texts[0] == "0 of 6 completions"
    assert texts[-1] == "6 of 6 completions"
    assert texts == sorted(texts)


async def test_progress_tells_how_many_completions_wait_for_their_rewards(completion):
    class OneByOne(Rewards):
        def __init__(self):
            super().__init__()
            self._lock = asyncio.Lock()

        async def score(self, group):
            async with self._lock:
                await asyncio.sleep(0.01)
                return await super().score(group)

    texts = []
    rewards = OneByOne()
    await collector([Engine("e", completion)], prompts=3, rewards=rewards).take(step=0, progress=texts.append)
    assert texts == [
        "0 of 6 completions",
        "2 of 6 completions, 4 being scored",
        "4 of 6 completions, 2 being scored",
        "6 of 6 completions",
    ]


async def test_metrics_are_those_of_the_rollouts_of_the_rewards_and_of_the_source(completion):
    _, metrics = await collector([Engine("e", completion)], prompts=2).take(step=0, progress=ignore)
    assert Mean("reward/mean", 4.0, 4) in metrics
    assert Total("rollout/tokens", 12) in metrics
    assert metrics[-6:] == [
        Total("reward/one_errors", 1),
        Total("reward/one_errors", 1),
        Last("data/epoch", 0),
        Last("engines/alive", 1),
        Total("engines/restarts", 0),
        Mean("throughput/reward_one_busy_fraction", 1, 2),
    ]


def ids(groups):
    return [int(group.prompt.id.removeprefix("p/")) for group in groups]


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


class TestDynamicSampling:
    async def test_groups_of_equal_rewards_give_way_to_those_of_further_prompts(self, completion):
        rewards = Rewards(informative=(1, 2, 4, 9))
        taker = collector([Engine("e", completion)], prompts=3, rewards=rewards, sampling={"max_draws": 5})
        groups, metrics = await taker.take(step=0, progress=ignore)
        assert ids(groups) == [1, 2, 4]
        dropped = [metric for metric in metrics if metric.name == "rollout/groups_dropped_fraction"]
        assert dropped == [Mean("rollout/groups_dropped_fraction", 2, 5)]

    async def test_beyond_the_bound_the_batch_is_filled_with_what_comes(self, completion):
        taker = collector(
            [Engine("e", completion)], prompts=3, rewards=Rewards(informative=(1,)), sampling={"max_draws": 2}
        )
        groups, _ = await taker.take(step=0, progress=ignore)
        # Two times three prompts: three are refused, all but one of the others are taken as they are.
        assert len(groups) == 3
        assert 1 in ids(groups)
        assert max(ids(groups)) <= 5

    async def test_every_batch_has_a_bound_of_its_own(self, completion):
        source_of = collector([Engine("e", completion)], prompts=2, sampling={"max_draws": 2})
        for step in range(3):
            groups, _ = await source_of.take(step=step, progress=ignore)
            assert len(groups) == 2
            assert max(ids(groups)) < 4 * (step + 1)


class TestStaleness:
    async def test_without_it_nothing_is_asked_before_the_batch_is_taken(self, completion):
        engine = Engine("e", completion)
        taker = collector([engine], prompts=3)
        await taker.take(step=0, progress=ignore)
        await settled()
        assert len(engine.requests) == 3

    async def test_with_it_the_next_batches_are_sampled_while_this_one_trains(self, completion):
        engine = Engine("e", completion)
        taker = collector([engine], prompts=3, max_staleness=2, max_running=2)
        groups, _ = await taker.take(step=0, progress=ignore)
        await settled()
        assert ids(groups) == [0, 1, 2]
        assert len(engine.requests) == 9
        groups, metrics = await taker.take(step=1, progress=ignore)
        assert ids(groups) == [3, 4, 5]
        assert Last("rollout/groups_stale", 0) in metrics

    async def test_no_more_are_under_way_than_allowed(self, completion):
        engine = Engine("e", completion, at_once=False)
        taker = collector([engine], prompts=4, max_staleness=1, max_running=3)
        taking = asyncio.create_task(taker.take(step=0, progress=ignore))
        await settled()
        assert len(engine.requests) == 3
        engine.gate("0/1").set()
        await settled()
        assert len(engine.requests) == 4
        taking.cancel()

    async def test_in_the_order_of_admission_a_straggler_is_waited_for(self, completion):
        engine = Engine("e", completion, at_once=False)
        taker = collector([engine], prompts=2, max_staleness=1)
        taking = asyncio.create_task(taker.take(step=0, progress=ignore))
        await settled()
        for request_id in ("0/1", "1/0", "1/1"):
            engine.gate(request_id).set()
        await settled()
        assert not taking.done()
        engine.gate("0/0").set()
        groups, _ = await taking
        assert ids(groups) == [0, 1]

    async def test_in_the_order_of_completion_a_straggler_is_passed_by_and_dropped_when_it_is_too_old(self, completion):
        engine = Engine("e", completion, at_once=False)
        taker = collector([engine], prompts=2, max_staleness=1, order="completion")
        taken = []
        for step in range(3):
            taking = asyncio.create_task(taker.take(step=step, progress=ignore))
            await settled()
            for request in engine.requests:
                # All but the first, which version 0 sampled.
                if request.id != "0/0" or step == 2:
                    engine.gate(request.id).set()
                await settled()
            engine.version = step + 1
            groups, metrics = await taking
            taken += ids(groups)
        assert 0 not in taken
        assert len(set(taken)) == 6
        assert Last("rollout/groups_stale", 1) in metrics

    async def test_what_is_dropped_as_too_old_makes_room_for_another(self, completion):
        engine = Engine("e", completion, at_once=False)
        taker = collector([engine], prompts=1, max_staleness=1, order="completion")
        for step, request_id in enumerate(("1/0", "2/0")):
            taking = asyncio.create_task(taker.take(step=step, progress=ignore))
            await settled()
            engine.gate(request_id).set()
            await taking
            engine.version += 1
        taking = asyncio.create_task(taker.take(step=2, progress=ignore))
        await settled()
        assert [request.id for request in engine.requests] == ["0/0", "1/0", "2/0", "3/0"]
        engine.gate("0/0").set()  # of version 0, two steps ago
        await settled()
        assert [request.id for request in engine.requests][4:] == ["4/0"]
        assert not taking.done()
        taking.cancel()

    async def test_what_is_under_way_is_dropped_with_the_block(self, completion):
        engine = Engine("e", completion, at_once=False)
        taker = collector([engine], prompts=2)
        async with taker.running():
            taking = asyncio.create_task(taker.take(step=0, progress=ignore))
            await settled()
        await settled()
        assert engine.cancelled == 2
        taking.cancel()

    async def test_a_failure_between_two_batches_is_raised_by_the_next(self, completion):
        error = EngineError("the engine died")
        engine = Engine("e", completion)
        taker = collector([engine], prompts=2, max_staleness=1, max_running=1)
        taking = asyncio.create_task(taker.take(step=0, progress=ignore))
        while len(engine.requests) < 3:
            await asyncio.sleep(0)
        engine._error = error
        await taking
        await settled()
        with pytest.raises(EngineError) as raised:
            await taker.take(step=1, progress=ignore)
        assert raised.value is error


class Interleaved:
    """A trainer, its rollouts and its checkpoints, moved on step by step by a script.

    An engine answers, or fails; a complete batch is trained on and published; the run is saved, or dies and goes on
    from what was saved last.
    """

    def __init__(self, completion, options):
        self._completion, self._options = completion, options
        self.prompts, self.staleness = options["prompts"], options["max_staleness"]
        self.trained, self.dropped, self.saved = [], 0, (0, [], 0, None)
        self._begin(0, None)

    def _begin(self, version, state):
        self.engine = Engine("e", self._completion, at_once=False)
        self.engine.version = version
        self.answered = set()
        self.taker = collector([self.engine], **self._options)
        if state is not None:
            self.taker.restore(state)
        self._take()

    def _take(self):
        self.taking = asyncio.create_task(self.taker.take(step=self.engine.version, progress=ignore))

    @property
    def still_open(self):
        return [request.id for request in self.engine.requests if request.id not in self.answered]

    async def answer(self, choice):
        assert self.still_open, "a batch is waited for and nothing is under way"
        assert len(self.still_open) <= self._options["max_running"]
        request_id = self.still_open[choice % len(self.still_open)]
        self.answered.add(request_id)
        self.engine.gate(request_id).set()
        await settled()

    async def fail(self, choice):
        """A request fails: the run ends with its error, and is taken up again."""
        self.engine._error = EngineError("the engine died")
        await self.answer(choice)
        with pytest.raises(EngineError):
            await self.taking
        await self.resume()

    async def train(self):
        """What is complete, until nothing is."""
        while self.taking.done():
            groups, metrics = self.taking.result()
            for group in groups:
                assert 0 <= self.engine.version - group.rollouts[0].versions.min() <= self.staleness
            self.trained += ids(groups)
            self.dropped += sum(int(m.value) for m in metrics if m.name == "rollout/groups_stale")
            self.engine.version += 1
            self.save()
            self._take()
            await settled()

    def save(self):
        self.saved = (self.engine.version, list(self.trained), self.dropped, self.taker.position())

    async def resume(self):
        """Everything since the last checkpoint is gone."""
        self.taking.cancel()
        self.taker._cancel()
        await settled()
        version, trained, self.dropped, state = self.saved
        self.trained = list(trained)
        self._begin(version, state)
        await settled()

    def check(self):
        """Every prompt that was drawn was trained on, waits, is under way, or was dropped as too old: once each."""
        state = self.taker.position()
        waiting = ids(each.group for each in state.waiting)
        under_way = [int(prompt.id.removeprefix("p/")) for _, prompt in state.in_flight]
        known = [*self.trained, *waiting, *under_way]
        assert len(known) == len(set(known))
        assert state.source["taken"] == len(known) + self.dropped + state.stale
        if self._options["order"] == "admission":
            assert self.trained == list(range(len(self.trained)))
            assert self.dropped + state.stale == 0


@given(
    staleness=st.integers(0, 3),
    order=st.sampled_from(["admission", "completion"]),
    prompts=st.integers(1, 3),
    max_running=st.integers(3, 9),
    script=st.lists(st.tuples(st.sampled_from(["answer"] * 8 + ["fail", "resume"]), st.integers(0, 30)), max_size=60),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_finishes_fails_and_resumes_when_no_group_is_lost_trained_twice_or_older_than_the_bound(
    completion, staleness, order, prompts, max_running, script
):
    options = {"prompts": prompts, "max_staleness": staleness, "order": order, "max_running": max_running}

    async def drive():
        run = Interleaved(completion, options)
        await settled()
        for event, choice in [*script, *[("answer", 0)] * 100]:
            if event == "resume":
                await run.resume()
            else:
                await getattr(run, event)(choice)
            await run.train()
            run.check()
            if run.engine.version >= 6:
                break
        assert run.engine.version >= 6
        assert len(run.trained) == run.engine.version * prompts
        run.taking.cancel()
        run.taker._cancel()
        await settled()

    asyncio.run(drive())


async def test_a_source_that_fails_ends_the_wait_with_its_error(completion):
    error = DataError("train.jsonl:7: no column")
    taker = collector([Engine("e", completion)], prompts=2)

    def fail(count):
        raise error

    taker._source.take = fail
    with pytest.raises(DataError) as raised:
        async with asyncio.timeout(5):
            await taker.take(step=0, progress=ignore)
    assert raised.value is error


class HeldEngine(Engine):
    """Begins when as many sequences have been asked for as it was released with."""

    def __init__(self, name, completion):
        super().__init__(name, completion)
        self.journal = []
        self._is_held = asyncio.Event()

    async def hold(self):
        self.journal.append("hold")
        self._is_held = asyncio.Event()

    async def release(self, sequences):
        self.journal.append(f"release {sequences} of {sum(request.samples for request in self.requests)}")
        self._is_held.set()

    async def generate(self, request):
        self.requests.append(request)
        await self._is_held.wait()
        self.requests.remove(request)
        return [self._completion(f"{request.id}") for _ in range(request.samples)]


async def test_in_deterministic_mode_engines_begin_when_they_have_all_requests(completion):
    engines = [HeldEngine("a", completion), HeldEngine("b", completion)]
    taker = collector(engines, prompts=3, deterministic=True)
    for step in range(2):
        await taker.take(step=step, progress=ignore)
    assert engines[0].journal == ["hold", "release 4 of 4"] * 2
    assert engines[1].journal == ["hold", "release 2 of 2"] * 2


async def test_in_deterministic_mode_more_prompts_are_drawn_when_all_of_a_wave_are_done(completion):
    engine = HeldEngine("a", completion)
    rewards = Rewards(informative=(1, 3, 4))
    taker = collector([engine], prompts=2, deterministic=True, rewards=rewards, sampling={"max_draws": 4})
    groups, _ = await taker.take(step=0, progress=ignore)
    assert [group.prompt.id for group in groups] == ["p/1", "p/3"]
    assert engine.journal == ["hold", "release 4 of 4", "hold", "release 2 of 2", "hold", "release 2 of 2"]


@pytest.mark.parametrize("deterministic", [True, False])
async def test_a_batch_that_was_cancelled_is_kept_in_the_position_unless_the_run_is_deterministic(
    completion, deterministic
):
    engine = HeldEngine("a", completion) if deterministic else Engine("a", completion)
    taker = collector([engine], prompts=2, deterministic=deterministic)
    await taker.take(step=0, progress=ignore)
    before = taker.position()
    taker.restore(before)  # sampled on, but not taken: a stop request cancels the wait
    taking = asyncio.create_task(taker.take(step=1, progress=ignore))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    taking.cancel()
    await settled()
    assert (taker.position() == before) is deterministic
    assert taker.position().source["taken"] == (2 if deterministic else 4)


class Models:
    """A reward model that tells the first completion of the prompts named from the others."""

    def __init__(self, *informative):
        self._informative = {f"question {number}" for number in informative}

    async def scores(self, conversations):
        differs = conversations[0][0].content in self._informative
        places = range(len(conversations))
        return np.array([[1.0 if place == 0 or not differs else 0.0 for place in places]], np.float32), []


async def test_dynamic_sampling_looks_at_the_scores_of_a_reward_model(completion):
    rewards = build_rewards([ModelReward(paths=["judge"])], models=Models(1, 2, 4))
    taker = collector([Engine("e", completion)], prompts=3, rewards=rewards, sampling={"max_draws": 5})
    groups, metrics = await taker.take(step=0, progress=ignore)
    assert [group.prompt.id for group in groups] == ["p/1", "p/2", "p/4"]
    assert [each.reward_parts for each in groups[0].rollouts] == [{"model": 1.0}, {"model": 0.0}]
    assert Mean("rollout/groups_dropped_fraction", 2, 5) in metrics
