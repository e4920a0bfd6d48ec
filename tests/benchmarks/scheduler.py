"""The real driver and collector: how much of the ideal overlap they reach, and what they cost themselves.

*Overlap.* Time is virtual, and `simulated.py` is the model of engines and trainer. A step is ideal if it takes

    max(tokens / rate of all engines with every slot taken, training + publish)

for the tokens that it trained on: as if sequences could be cut at will, no engine ever had a free slot, and a publish
did not stop the engines. No schedule can be that good; ours is not compared with anything kinder. Training/sampling is
the second over the first: 1 leaves no slack on either side, and 2.1 is what the planner computes for this model.

*What bounds it.* Under `max_staleness: 1` everything that batch v + 1 trains on is sampled after publish v, as a token
of older weights would be two steps old. From there to the end of its slowest sequence takes the latency L. So a step
takes T = training + publish if L < T, and no less than (T + L) / 2 otherwise, in whatever order groups are taken. L is
never below the time of a completion of full length, and rather that plus the time in which it waited for a slot. Where
sampling and training take equally long, T = L is out of reach unless a step is many times as long as its longest
completion. The second table shows that: what hides the stragglers is many rollouts a slot, engines that are a little
faster than the trainer, or `max_staleness: 2`.

*The driver's own time* is processor time, of the whole process and of its main thread, with roles that answer at once:
collecting, packing, advantages, metrics, and every file that a step leaves. Another thread writes the samples while the
models train; only the main thread's time can delay a step.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ray_rl.app.build import build_collector, build_session, sampling_of
from ray_rl.app.records import open_run
from ray_rl.cluster.engines.sharing import Apart
from ray_rl.config import RunConfig
from ray_rl.config.loading.load import load_config
from ray_rl.data.ends import Ends
from ray_rl.loops.online import train
from ray_rl.loops.roles import Roles
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.metric import Metric
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import DEFAULT_GPU, ClusterShape
from ray_rl.planner.throughput import estimate
from ray_rl.rollout.collector import Collector
from ray_rl.rollout.episodes import SingleTurn
from ray_rl.rollout.pool import EnginePool, Sampler
from ray_rl.rollout.request import SampleRequest
from ray_rl.training.crediting import Credited, credited
from ray_rl.types import Completion, TrainBatch
from tests.algorithm import algorithm
from tests.benchmarks.simulated import GROUP, MAX_TOKENS, PLANNED, SLOTS, SYNC_S, Judge, Load, Machines, Source
from tests.benchmarks.virtual_time import run_in_virtual_time
from tests.run_folders import new_run_folder

PROMPTS = 128
STEPS, WARM = 9, 2
"""Simulated, and left out at the start: they have nothing to overlap with."""
POLICIES = ((0, "admission"), (1, "admission"), (1, "completion"), (2, "admission"), (2, "completion"))
STEP_SIZES = (
    (PROMPTS, MAX_TOKENS, "admission"),
    (PROMPTS, MAX_TOKENS, "completion"),
    (1250, 2048, "admission"),
)
"""Prompts, tokens of a completion and order of the steps in which the driver's own time is measured."""
RECIPE = Path(__file__).parents[2] / "configs" / "grpo_math_qwen2.5-7b_16xh100.yaml"
APART = [
    "cluster.colocate=[[actor, reference]]",
    "train.workers=8",
    "train.gradient_checkpointing=true",
    "reference.workers=8",
    "rollout.engines=8",
    "rollout.tensor_parallel=1",
]
"""Half of the GPUs train and half sample."""


@dataclass(frozen=True)
class Outcome:
    step_s: float
    ideal_s: float
    tokens: float
    """Mean length of what was trained on: below that of what was sampled where the long are dropped."""
    stale: float
    """Groups dropped as too old, over those trained on."""

    @property
    def of_ideal(self) -> str:
        share = self.ideal_s / self.step_s
        return f"[{'green' if share >= 0.9 else 'red'}]{share:.1%}[/]"


def config_of(folder: str, *, prompts: int, steps: int, staleness: int, order: str, engines: int = 1) -> RunConfig:
    rollout = {"engines": engines, "max_tokens": MAX_TOKENS, "max_staleness": staleness, "order": order}
    return RunConfig.model_validate(
        {
            "run": {"name": "driver", "dir": folder, "steps": steps, "samples": 0, "heartbeat_s": 3600},
            "model": {"path": "none"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(prompts_per_step=prompts, group_size=GROUP),
            "rollout": rollout,
            "checkpoint": {"every_steps": None, "export": False},
        }
    )


def collector_of(config: RunConfig, engines: Sequence[Sampler]) -> Collector:
    pool = EnginePool(engines, timeout_s=config.rollout.timeout_s)
    return build_collector(config, Source(), pool, SingleTurn(pool, sampling_of(config, Ends((), ()))), Judge())


async def drive(config: RunConfig, roles: Roles, clock: Callable[[], float]) -> list[dict[str, float]]:
    """What `metrics.jsonl` says of every step, with the time at which the step ended."""
    records = []
    folder = new_run_folder(config)
    with open_run(config, folder, RunConsole(io.StringIO()), clock=clock) as run:
        logged = run.log

        def log(*arguments: Any) -> dict[str, float]:
            records.append(logged(*arguments))
            return records[-1]

        run.log = log
        stop = Stop(grace_s=60)
        await train(build_session(config, folder, run, roles, stop=stop, since=None, models={}))
    return records


def simulate(load: Load, *, staleness: int, order: str) -> Outcome:
    machines = Machines(load)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(
            folder, prompts=load.prompts, steps=STEPS, staleness=staleness, order=order, engines=load.engines
        )
        collector = collector_of(config, machines.engines)
        roles = Roles(rollouts=collector, actor=machines, weights=machines, phases=Apart(), scores={})
        records = run_in_virtual_time(lambda clock: drive(config, roles, clock))[WARM:]
    tokens = statistics.fmean(machines.tokens[WARM:])
    return Outcome(
        step_s=(machines.ends_s[-1] - machines.ends_s[WARM - 1]) / len(records),
        ideal_s=max(load.sampling_s(tokens), tokens * load.training_s + SYNC_S),
        tokens=tokens / (load.prompts * GROUP),
        stale=statistics.fmean(record.get("rollout/groups_stale", 0.0) for record in records) / load.prompts,
    )


def overlap_table() -> Table:
    table = Table(title=f"{PROMPTS} prompts x {GROUP} completions a step, lognormal lengths (sigma 1), virtual time")
    for column in ("GPUs", "training/sampling", "staleness", "order", "steps/h", "s/step", "ideal s/step", "of ideal"):
        table.add_column(column, justify="right")
    table.add_column("mean tokens", justify="right")
    table.add_column("stale groups", justify="right")
    for ratio, gpus in itertools.product((1.0, PLANNED), (16, 32, 48)):
        load = Load(gpus, PROMPTS, ratio)
        for staleness, order in POLICIES if ratio == 1.0 else POLICIES[:3]:
            found = simulate(load, staleness=staleness, order=order)
            times = (f"{3600 / found.step_s:.1f}", f"{found.step_s:.0f}", f"{found.ideal_s:.0f}", found.of_ideal)
            rest = (f"{found.tokens:,.0f}", f"{found.stale:.1%}")
            table.add_row(str(gpus), f"{ratio:g}", str(staleness), order, *times, *rest)
        table.add_section()
    return table


def slack_table() -> Table:
    """On one engine and as many GPUs that train: by the first table, only the rollouts a slot count, not the GPUs."""
    ratios = (1.0, 1.25, 1.5)
    table = Table(title="Of ideal, max_staleness 1 in the order of admission")
    for column in ("rollouts a slot and step", *(f"training/sampling {ratio:g}" for ratio in ratios)):
        table.add_column(column, justify="right")
    for waves in (1.33, 4, 8, 16):
        loads = [Load(8, round(waves * SLOTS / GROUP), ratio) for ratio in ratios]
        found = [simulate(load, staleness=1, order="admission").of_ideal for load in loads]
        table.add_row(f"{waves:g}", *found)
    return table


class Instant:
    """Engine and trainer that answer at once, with completions of full length."""

    def __init__(self, completions: int, tokens: int) -> None:
        random, shape = np.random.default_rng(0), (completions, tokens)
        sampled, logprobs = random.integers(0, 150_000, shape, np.int32), -random.random(shape, np.float32)
        self._arrays = itertools.cycle(zip(sampled, logprobs, strict=True))
        self._version, self._tokens, self._text = 0, tokens, "word " * (tokens * 3 // 4)
        self.published: list[tuple[float, float, float]] = []
        """Processor time of the process, of the main thread, and time of each publish: to the next one is a step."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        versions = np.full(self._tokens, self._version, np.int32)
        drawn = itertools.islice(self._arrays, request.samples)
        return [Completion(tokens, logprobs, versions, "length", self._text) for tokens, logprobs in drawn]

    async def credit(self, *batch: Any, **settings: Any) -> Credited:
        return credited(self, *batch, **settings)

    async def update(self, batch: TrainBatch) -> list[Metric]:
        return []

    async def publish(self, version: int) -> list[Metric]:
        self._version = version
        self.published.append((time.process_time(), time.thread_time(), time.perf_counter()))
        return []


def driver_s(order: str, *, prompts: int, tokens: int, steps: int = 3) -> tuple[float, ...]:
    """Processor time of the process and of its main thread in a step, and its time; the mean, without the first."""
    instant = Instant(prompts * GROUP, tokens)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(folder, prompts=prompts, steps=steps, staleness=1, order=order)
        collector = collector_of(config, [instant])
        roles = Roles(rollouts=collector, actor=instant, weights=instant, phases=Apart(), scores={})
        asyncio.run(drive(config, roles, time.perf_counter))
    steps_s = [np.subtract(after, before) for before, after in itertools.pairwise(instant.published[1:])]
    return tuple(np.mean(steps_s, axis=0).tolist())


def planned_step_s() -> float:
    """The planner's step of 1,024 x 8,192 tokens for a 7B model on 16 H100, sampling and training at the same time."""
    config = load_config(RECIPE, [f"rollout.max_tokens={MAX_TOKENS}", *APART])
    found = estimate(config, assess(config, ClusterShape.of(config, gpu=DEFAULT_GPU)))
    return max(found.rollout_s, found.score_s + found.update_s + found.sync_s)


def driver_table() -> Table:
    table = Table(
        title="The driver's own time",
        caption=f"The planner's step of 1,024 x 8,192 tokens of 7B on 16 H100 takes {planned_step_s():.0f} s.",
    )
    for column in ("completions a step", "tokens", "order", "processor s/step", "in the main thread", "s/step"):
        table.add_column(column, justify="right")
    for prompts, tokens, order in STEP_SIZES:
        cpu_s, main_s, wall_s = driver_s(order, prompts=prompts, tokens=tokens)
        size = (f"{prompts * GROUP:,}", f"{tokens:,}")
        table.add_row(*size, order, f"{cpu_s:.2f}", f"{main_s:.2f}", f"{wall_s:.2f}")
    return table


def main() -> None:
    console = Console(width=140)
    for table in (overlap_table, slack_table, driver_table):
        started_s = time.process_time()
        console.print(table())
        console.print(f"(measured in {time.process_time() - started_s:.0f} s of processor time)\n")


if __name__ == "__main__":
    main()
