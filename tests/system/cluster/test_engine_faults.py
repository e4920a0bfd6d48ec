"""Engines that die or hang in a run on real Ray, vLLM and DeepSpeed: the run goes on, and nothing is lost."""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from ray_rl.errors import ClusterError
from tests.driver_log import now, said
from tests.system.cluster.whole_run import whole_run
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.faults

PROMPTS, GROUP, STEPS = 5, 4, 7
"""An epoch is as many prompts as all steps take."""
BACK_S = 240.0
"""Bound for an engine to come back; beside other load it takes 40 s."""
FLOAT32_GAP = 1e-3
"""Of one step to the next the log-probabilities change by more."""
ACTOR, ENGINE_CORE = "ray::", "VLLM::"
"""Of an engine's processes: what the names of that which answers and that which computes begin with."""


@dataclass
class Harm:
    """What is done to one engine at one step, and what became of it."""

    name: str
    step: int
    """Not the first: with weights that are no longer those in the model's folder."""
    victim: int
    process: str
    signals: tuple[signal.Signals, ...]
    during: str
    why: str
    """What the log gives as the reason."""
    restart: str
    struck: psutil.Process | None = None
    struck_at: datetime | None = None
    requests_at_risk: int = 0
    answered: Counter = field(default_factory=Counter)
    """Requests that each engine answered once all were back."""


KILL, HOLD = signal.SIGKILL, signal.SIGSTOP
GENERATING, PUBLISH, COMMIT, ASLEEP = "generating", "publish", "commit", "asleep"


def one_engine():
    why = "the engine died during request 1/|vLLM's process ended"
    return [Harm("the only engine killed", 1, 0, ENGINE_CORE, (KILL,), GENERATING, why, "restart 1 of 3 in 1 s")]


def one_shared_engine():
    """On the devices of the actor: it comes back only in the phase in which engines sample."""
    died = "the engine died during request 1/|vLLM's process ended"
    return [
        Harm("killed while generating", 1, 0, ENGINE_CORE, (KILL,), GENERATING, died, "restart 1 of 3 in 1 s"),
        Harm("killed asleep", 3, 0, ENGINE_CORE, (KILL,), ASLEEP, "vLLM's process ended", "restart 2 of 3 in 2 s"),
        Harm(
            "killed in a publish",
            5,
            0,
            ENGINE_CORE,
            (HOLD, KILL),
            PUBLISH,
            "vLLM's process ended",
            "restart 3 of 3 in 4 s",
        ),
    ]


def two_engines():
    """In one run, as starting engines takes longest."""
    died = r"died on [\d.]+ \(process \d+: SYSTEM_ERROR"
    silent = r"has not answered for 1[2-6]\.\d s"
    return [
        Harm("killed while generating", 1, 0, ACTOR, (KILL,), GENERATING, died, "restart 1 of 3 in 1 s"),
        # Stopped first, so that the trainer waits for it and the other engine has a part of the weights.
        Harm(
            "killed in a publish",
            3,
            0,
            ENGINE_CORE,
            (HOLD, KILL),
            PUBLISH,
            "vLLM's process ended",
            "restart 2 of 3 in 2 s",
        ),
        Harm("stopped while generating", 5, 1, ENGINE_CORE, (HOLD,), GENERATING, silent, "restart 1 of 3 in 1 s"),
    ]


def two_engines_with_adapters():
    """One dies while the trainer sends the adapters, the other while it installs them."""
    ended = "vLLM's process ended"
    return [
        Harm("killed in a publish", 2, 0, ENGINE_CORE, (HOLD, KILL), PUBLISH, ended, "restart 1 of 3 in 1 s"),
        Harm("killed as it installs", 4, 1, ENGINE_CORE, (HOLD, KILL), COMMIT, ended, "restart 1 of 3 in 1 s"),
    ]


@dataclass(frozen=True)
class Scene:
    """A run, and what is done to its engines."""

    harms: Callable[[], list[Harm]]
    engines: int = 1
    colocate: Sequence[Sequence[str]] = ()
    adapter: str | None = None
    """How adapters are published; None: all weights are trained."""


SCENES = {
    "two": Scene(two_engines, engines=2),
    "one": Scene(one_engine),
    "one_shared": Scene(one_shared_engine, colocate=[["actor", "rollout"]]),
    "separate_adapters": Scene(two_engines_with_adapters, engines=2, adapter="separate"),
    "merged_adapters": Scene(two_engines_with_adapters, engines=2, adapter="merged"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def make(connected, make_config, model, tmp_path_factory):
    def make_run(*, engines, max_restarts=3, colocate=(), adapter=None):
        # Adapters start without an effect, so that they need larger steps to change as much.
        lora, rate = (None, 2e-4) if adapter is None else ({"rank": 4}, 2e-3)
        return make_config(
            run={"name": "faults", "dir": str(tmp_path_factory.mktemp("runs")), "steps": STEPS},
            model={"path": str(model), "dtype": "float32", "adapter": lora},
            data={"kind": "addition", "maximum": 6, "size": PROMPTS * STEPS, "max_prompt_tokens": 32},
            rewards=[{"kind": "length", "target": 2}],
            algorithm={"prompts_per_step": PROMPTS, "group_size": GROUP},
            rollout={
                "engines": engines,
                "max_tokens": 64,
                "max_sequences": 16,
                "kv_cache_gib": 0.05,
                "heartbeat_s": 1.0,
                "heartbeat_timeout_s": 12.0,
            },
            train={"learning_rate": rate},
            weight_sync={"bucket_mib": 1, "timeout_s": 60, "adapter": adapter or "auto"},
            cluster={
                "accelerator": "cpu",
                "address": connected.cluster.address,
                "max_restarts": max_restarts,
                "colocate": colocate,
            },
        )

    return make_run


class Sabotage:
    """Stands between the driver and its roles, and does harm."""

    def __init__(self, harms):
        self._harms = {harm.step: harm for harm in harms}
        self._mended = None
        """The harm done last, once all engines serve again."""
        self._taken = None
        """The step whose rollouts were taken last."""

    def watch(self, roles):
        self._rollouts, self._router = roles.rollouts, roles.rollouts._pool._router
        self._engines = roles.weights._engines
        self.running, self.position = self._rollouts.running, self._rollouts.position
        for engine in self._engines:
            engine.generate = self._counted(engine.name, engine.generate)
            engine.receive_weights = self._cut_short(engine, engine.receive_weights, PUBLISH)
            engine.commit = self._cut_short(engine, engine.commit, COMMIT)
        publish = roles.weights.publish

        async def counted(version):
            self._step = version - 1  # that made the version
            return await publish(version)

        roles.weights.publish = counted
        self._phases, self.sample = roles.phases, roles.phases.sample
        return replace(roles, rollouts=self, phases=self)

    async def train(self):
        await self._phases.train()
        harm = self._harms.get(self._taken)
        if harm is not None and harm.during == ASLEEP and not harm.struck:
            await self._strike(harm)

    async def take(self, *, step, progress):
        self._mended = None
        if step - 1 in self._harms:
            async with asyncio.timeout(BACK_S):
                while self._router.quarantined:
                    await asyncio.sleep(0.1)
            self._mended = self._harms[step - 1]
        self._taken = step
        harm = self._harms.get(step)
        if harm is None or harm.during != GENERATING:
            return await self._rollouts.take(step=step, progress=progress)
        taking = asyncio.ensure_future(self._rollouts.take(step=step, progress=progress))
        while not self._router.outstanding[harm.victim]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        harm.requests_at_risk = self._router.outstanding[harm.victim]
        await self._strike(harm)
        return await taking

    def _counted(self, name, generate):
        async def counted(request):
            completions = await generate(request)
            if self._mended is not None:
                self._mended.answered[name] += 1
            return completions

        return counted

    def _cut_short(self, engine, call, during):
        async def cut_short(argument):
            calling = asyncio.ensure_future(call(argument))
            harm = self._harms.get(self._step)
            if harm is not None and harm.during == during and self._engines[harm.victim] is engine and not harm.struck:
                await self._strike(harm)
            return await calling

        return cut_short

    async def _strike(self, harm):
        harm.struck_at = now()
        family = [psutil.Process(member.pid) for member in self._engines[harm.victim].process._family.members]
        (harm.struck,) = [process for process in family if harm.process in process.name()]
        for number in harm.signals:
            os.kill(harm.struck.pid, number)
            await asyncio.sleep(0.5)


@dataclass(frozen=True)
class Ended:
    """A run that ended."""

    scene: Scene
    harms: list[Harm]
    records: list[dict]
    samples: list[dict]
    log: Path


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=SCENES)
async def ended(request, make, model):
    scene = SCENES[request.param]
    harms = scene.harms()
    config = make(engines=scene.engines, colocate=scene.colocate, adapter=scene.adapter)
    records, samples = await whole_run(config, model, watch=Sabotage(harms).watch)
    return Ended(scene, harms, records, samples, Path(config.run.dir) / config.run.name / "logs" / "driver.log")


def test_every_prompt_of_the_epoch_is_trained_on_once_by_the_weights_of_its_step(ended):
    assert len(ended.records) == STEPS
    trained = Counter(sample["prompt_id"] for sample in ended.samples)
    assert len(trained) == PROMPTS * STEPS
    assert set(trained.values()) == {GROUP}
    for sample in ended.samples:
        assert [version for version, _ in sample["versions"]] == [sample["step"] - 1]


def test_the_trainer_finds_what_the_engines_say_those_that_went_through_it_and_those_that_came_back(ended):
    assert max(record["sync/logprob_gap_max"] for record in ended.records) < FLOAT32_GAP
    assert min(record["policy/grad_norm"] for record in ended.records) > 0


def test_each_engine_that_was_harmed_is_restarted_once_and_serves_again(ended):
    assert sum(record["engines/restarts"] for record in ended.records) == len(ended.harms)
    for harm in ended.harms:
        name = f"rollout-{harm.victim}"
        assert ended.records[harm.step + 1]["engines/alive"] == ended.scene.engines
        assert harm.answered[name] > 0, harm
        assert harm.requests_at_risk > 0 or harm.during != GENERATING
        assert not harm.struck.is_running() or harm.struck.status() == psutil.STATUS_ZOMBIE
        lost = said(ended.log, f"{name} is lost", since=harm.struck_at, fault=harm.name)
        assert re.search(f"({harm.why}).*: {harm.restart}", lost.text)
        said(ended.log, f"{name} serves again", since=harm.struck_at, fault=harm.name)


@pytest.mark.asyncio(loop_scope="session")
async def test_with_no_restart_left_and_no_engine_the_run_ends_and_says_so(make, model):
    harms = one_engine()
    with pytest.raises(ClusterError) as raised:
        await whole_run(make(engines=1, max_restarts=0), model, watch=Sabotage(harms).watch)
    assert str(raised.value).startswith(
        "no engine is left: rollout-0, the last, was lost after 0 restarts (cluster.max_restarts=0): "
    )
