"""The real driver and collector over simulated engines and trainer: how much of the ideal overlap they reach.

Time is simulated: the event loop jumps from one timer to the next. Lengths are lognormal (sigma 1), cut off at 8,192
tokens. Ideal is max(work of all sequences / slots of all engines, update + publish) a step, as if sequences could be
cut at will. The processor time that the process really took, simulated engines included, is set against the simulated
step.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import selectors
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ray_rl.config import RunConfig
from ray_rl.loops.online import train
from ray_rl.loops.roles import Roles
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.metric import Metric
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.rollout.collector import Collector
from ray_rl.rollout.request import SampleRequest
from ray_rl.types import Completion, Message, Prompt, Rollout, RolloutGroup, TrainBatch

GROUP = 16
MAX_TOKENS = 8192
MEDIAN_TOKENS = 1000
SIGMA = 1.0
TOKENS_PER_S = 40.0
"""Of one sequence."""
SLOTS = 128
"""Sequences of an engine."""
TENSOR_PARALLEL = 4
SYNC_S = 5.0
STEPS = 12


class JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: the time that was to pass has passed."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is scheduled and nothing is ready: the driver waits for ever")
        self.now_s += timeout
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


@dataclass
class Simulation:
    """Engines, trainer and judge."""

    engines: int
    update_s: float
    full_length: bool
    version: int = 0
    work_s: float = 0.0
    """Of all sequences so far."""
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def length(self) -> int:
        if self.full_length:
            return MAX_TOKENS
        return int(min(MAX_TOKENS, max(1, self.random.lognormal(np.log(MEDIAN_TOKENS), SIGMA))))

    async def update(self, batch: TrainBatch) -> list[Metric]:
        await asyncio.sleep(self.update_s)
        return []

    async def publish(self, version: int) -> list[Metric]:
        await asyncio.sleep(SYNC_S if version else 0.0)
        self.version = version
        return []

    async def ascore(self, prompt: Prompt, completions: list[Completion]) -> tuple[RolloutGroup, list[Metric]]:
        rewards = [float(g % 2) for g in range(len(completions))]
        rollouts = [Rollout(c, reward, {"half": reward}) for c, reward in zip(completions, rewards, strict=True)]
        return RolloutGroup(prompt, rollouts), []


class Engine:
    """A sequence takes a slot for as long as its tokens take."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._slots = asyncio.Semaphore(SLOTS)

    async def generate(self, request: SampleRequest) -> list[Completion]:
        return list(await asyncio.gather(*(self._sequence() for _ in range(request.samples))))

    async def _sequence(self) -> Completion:
        length = self._simulation.length()
        async with self._slots:
            version = self._simulation.version
            await asyncio.sleep(length / TOKENS_PER_S)
        self._simulation.work_s += length / TOKENS_PER_S
        zeros = np.zeros(length, np.float32)
        return Completion(zeros.astype(np.int32), zeros, np.full(length, version, np.int32), "stop", "")


class Source:
    def take(self, count: int) -> list[Prompt]:
        return [Prompt("p", (1,) * 512, "?", {}, (Message("user", "?"),))] * count

    def metrics(self) -> list[Metric]:
        return []


@dataclass(frozen=True)
class Outcome:
    step_s: float
    ideal_s: float
    driver_fraction: float


def simulated(
    *, gpus: int, staleness: int, order: str, prompts: int = 64, full_length: bool = False, steps: int = STEPS
) -> Outcome:
    """Half of the GPUs sample, half train; the update takes as long as the sampling would at best."""
    engines = gpus // 2 // TENSOR_PARALLEL
    lengths = Simulation(0, 0.0, full_length)
    expected = np.mean([lengths.length() for _ in range(20_000)])
    sampling_s = prompts * GROUP * expected / TOKENS_PER_S / (engines * SLOTS)
    simulation = Simulation(engines, max(1.0, sampling_s - SYNC_S), full_length)
    with tempfile.TemporaryDirectory() as place:
        config = RunConfig.model_validate(
            {
                "run": {"name": "simulated", "dir": place, "steps": steps, "samples": 0},
                "model": {"path": "none"},
                "data": {"kind": "addition", "max_prompt_tokens": 512},
                "rewards": [{"kind": "number"}],
                "algorithm": {"prompts_per_step": prompts, "group_size": GROUP},
                "rollout": {"engines": engines, "max_tokens": MAX_TOKENS, "max_staleness": staleness, "order": order},
            }
        )
        started_s = time.process_time()
        ends_s = run_jumping(lambda clock: _train(config, simulation, clock))
        busy_s = time.process_time() - started_s
    # The first step has nothing to overlap with.
    step_s = (ends_s[-1] - ends_s[0]) / (steps - 1)
    work_s = simulation.work_s / (engines * SLOTS) / (prompts * steps) * prompts
    return Outcome(step_s, max(work_s, simulation.update_s + SYNC_S), busy_s / steps / step_s)


def run_jumping(main: Callable[[Callable[[], float]], Coroutine[Any, Any, list[float]]]) -> list[float]:
    loop = JumpingLoop()
    with contextlib.closing(loop):
        return loop.run_until_complete(main(loop.time))


async def _train(config: RunConfig, simulation: Simulation, clock: Callable[[], float]) -> list[float]:
    """When each step ended."""
    ends_s: list[float] = []
    samplers = [Engine(simulation) for _ in range(simulation.engines)]
    collector = Collector(config, Source(), samplers, simulation)
    with Run(config, RunFolder.create(config), RunConsole(io.StringIO()), clock=clock) as run:
        logged = run.log

        def log(*arguments: Any) -> dict[str, float]:
            ends_s.append(clock())
            return logged(*arguments)

        run.log = log
        roles = Roles(rollouts=collector, actor=simulation, weights=simulation)
        await train(config, roles, run, export_to=None)
    return ends_s


def main() -> None:
    table = Table(title=f"Simulated steps of 64 prompts x {GROUP} completions, lognormal lengths (sigma {SIGMA:g})")
    for column in ("GPUs", "max_staleness", "order", "s/step", "ideal s/step", "of ideal", "driver's share"):
        table.add_column(column)
    for gpus in (16, 32, 48):
        for staleness, order in ((0, "admission"), (1, "admission"), (1, "completion"), (2, "admission")):
            outcome = simulated(gpus=gpus, staleness=staleness, order=order)
            table.add_row(str(gpus), str(staleness), order, *_row(outcome))
    full = simulated(gpus=48, staleness=1, order="admission", full_length=True, steps=3)
    table.add_row("48", "1", "1,024 x 8,192 tokens", *_row(full))
    Console(width=140).print(table)


def _row(outcome: Outcome) -> list[str]:
    return [
        f"{outcome.step_s:.1f}",
        f"{outcome.ideal_s:.1f}",
        f"{outcome.ideal_s / outcome.step_s:.0%}",
        f"{outcome.driver_fraction:.2%}",
    ]


if __name__ == "__main__":
    main()
