"""Engines that die or hang in a run on real Ray, vLLM and DeepSpeed: the run goes on, and nothing is lost."""

import asyncio
import os
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ray_rl.errors import ClusterError
from tests.cluster.whole_run import whole_run
from tests.driver_log import now, seconds_until
from tests.tiny_model import write_tiny_model

PROMPTS, GROUP, STEPS = 5, 4, 5
"""An epoch is as many prompts as all steps take."""
FAULT_STEP = 1
"""With weights that are no longer those in the model's folder."""
BACK_S = 240.0
"""Bound for an engine to come back; beside other load it takes 40 s."""
FLOAT32_GAP = 1e-3
"""Of one step to the next the log-probabilities change by more."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make(connected, make_config, model, tmp_path):
    def make_run(*, engines=2, max_restarts=3, **rollout):
        return make_config(
            run={"name": "faults", "dir": str(tmp_path), "steps": STEPS},
            model={"path": str(model), "dtype": "float32"},
            data={"kind": "addition", "maximum": 4, "size": PROMPTS * STEPS, "max_prompt_tokens": 32},
            rewards=[{"kind": "length", "target": 2}],
            algorithm={"prompts_per_step": PROMPTS, "group_size": GROUP},
            rollout={
                "engines": engines,
                "max_tokens": 64,
                "max_sequences": 16,
                "kv_cache_gib": 0.05,
                "heartbeat_s": 1.0,
                **rollout,
            },
            train={"learning_rate": 2e-4},
            weight_sync={"bucket_mib": 1, "timeout_s": 60},
            cluster={"accelerator": "cpu", "address": connected.cluster.address, "max_restarts": max_restarts},
        )

    return make_run


class Sabotage:
    """Stands between the driver and its roles, and does harm to one engine at one step."""

    def __init__(self, *, victim, process, signals, during):
        self._victim = victim
        self._process = process
        self._signals = signals
        self._during = during
        self.answered = Counter()
        """Requests that each engine answered after the harm was mended."""
        self.is_done = False
        self.requests_at_risk = 0
        self._publishes = 0

    def watch(self, roles):
        self._rollouts, self._router = roles.rollouts, roles.rollouts._router
        engines = roles.weights._engines
        self._engine = engines[self._victim]
        self.running, self.state = self._rollouts.running, self._rollouts.state
        for engine in engines:
            engine.generate = self._counted(engine.name, engine.generate)
        if self._during == "publish":
            self._engine.receive_weights = self._cut_short(self._engine.receive_weights)
        return replace(roles, rollouts=self)

    async def take(self, *, step, progress):
        if step > FAULT_STEP:
            async with asyncio.timeout(BACK_S):
                while self._router.quarantined:
                    await asyncio.sleep(0.1)
        if self._during == "generating" and step == FAULT_STEP:
            taking = asyncio.ensure_future(self._rollouts.take(step=step, progress=progress))
            while not self._router.outstanding[self._victim]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            self.requests_at_risk = self._router.outstanding[self._victim]
            await self._strike()
            return await taking
        return await self._rollouts.take(step=step, progress=progress)

    def _counted(self, name, generate):
        async def counted(request):
            completions = await generate(request)
            self.answered[name] += self.is_done and not self._router.quarantined
            return completions

        return counted

    def _cut_short(self, receive_weights):
        async def cut_short(update_info):
            receiving = asyncio.ensure_future(receive_weights(update_info))
            self._publishes += 1
            if self._publishes == FAULT_STEP + 2:  # the first was of version 0
                await self._strike()
            await receiving

        return cut_short

    async def _strike(self):
        self.is_done, self.struck_at = True, now()
        family = [psutil.Process(member.pid) for member in self._engine.process._family.members]
        (self.struck,) = [process for process in family if self._process in process.name()]
        for number in self._signals:
            os.kill(self.struck.pid, number)
            await asyncio.sleep(0.5)


ACTOR, ENGINE_CORE = "ray::", "VLLM::"
"""Of an engine's processes: what the names of that which answers and that which computes begin with."""


@pytest.mark.parametrize(
    ("sabotage", "rollout", "why"),
    [
        pytest.param(
            {"victim": 0, "process": ACTOR, "signals": [signal.SIGKILL], "during": "generating"},
            {},
            r"died on [\d.]+ \(process \d+: SYSTEM_ERROR",
            id="killed-while-generating",
        ),
        pytest.param(
            # Stopped first, so that the trainer waits for it and the other engine has a part of the weights.
            {"victim": 0, "process": ENGINE_CORE, "signals": [signal.SIGSTOP, signal.SIGKILL], "during": "publish"},
            {},
            "vLLM's process ended",
            id="killed-in-a-publish",
        ),
        pytest.param(
            {"victim": 0, "process": ENGINE_CORE, "signals": [signal.SIGKILL], "during": "generating"},
            {"engines": 1},
            "the engine died during request 1/|vLLM's process ended",
            id="the-only-one-killed",
        ),
        pytest.param(
            {"victim": 1, "process": ENGINE_CORE, "signals": [signal.SIGSTOP], "during": "generating"},
            {"heartbeat_timeout_s": 12.0},
            r"has not answered for 1[2-6]\.\d s",
            id="stopped-while-generating",
        ),
    ],
)
async def test_the_run_ends_with_every_prompt_trained_once_and_the_engine_serves_again(
    make, model, sabotage, rollout, why, request
):
    config = make(**rollout)
    harm = Sabotage(**sabotage)
    records, samples = await whole_run(config, model, watch=harm.watch)

    assert len(records) == STEPS
    trained = Counter(sample["prompt_id"] for sample in samples)
    assert len(trained) == PROMPTS * STEPS
    assert set(trained.values()) == {GROUP}
    for sample in samples:
        assert [version for version, _ in sample["versions"]] == [sample["step"] - 1]
    # The trainer finds what the engines say: those that went through it, and the one that came back.
    assert max(record["sync/logprob_gap_max"] for record in records) < FLOAT32_GAP
    assert min(record["policy/grad_norm"] for record in records) > 0

    engines, name = config.rollout.engines, f"rollout-{harm._victim}"
    assert sum(record["engines/restarts"] for record in records) == 1
    assert [record["engines/alive"] for record in records[FAULT_STEP + 1 :]] == [engines] * (STEPS - FAULT_STEP - 1)
    assert harm.answered[name] > 0
    if harm._during == "generating":
        assert harm.requests_at_risk > 0
    assert not harm.struck.is_running() or harm.struck.status() == psutil.STATUS_ZOMBIE

    file = Path(config.run.dir) / config.run.name / "logs" / "driver.log"
    assert re.search(f"{name} is lost: .*({why}).*: restart 1 of 3 in 1 s", file.read_text())
    assert re.search(rf"{name} serves again, [\d.]+ s after it was lost", file.read_text())
    for text in ("is lost", "serves again"):
        seconds_until(file, text, since=harm.struck_at, fault=request.node.callspec.id)


async def test_with_no_restart_left_and_no_engine_the_run_ends_and_says_so(make, model):
    config = make(engines=1, max_restarts=0)
    harm = Sabotage(victim=0, process=ACTOR, signals=[signal.SIGKILL], during="generating")
    with pytest.raises(ClusterError) as raised:
        await whole_run(config, model, watch=harm.watch)
    assert str(raised.value).startswith(
        "no engine is left: rollout-0, the last, was lost after 0 restarts (cluster.max_restarts=0): "
    )
