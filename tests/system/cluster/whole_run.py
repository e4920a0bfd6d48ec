"""A run with real workers on the cluster of these tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.config import RunConfig

if TYPE_CHECKING:
    from ray_rl.cluster.start import TeamSpec, Workers
    from ray_rl.data.source import PromptSource
    from ray_rl.loops.roles import Roles
    from ray_rl.metrics.run import Run
    from ray_rl.metrics.run_folder import RunFolder
    from ray_rl.rollout.pool import EnginePool
    from ray_rl.rollout.request import Sampling


@dataclass(frozen=True)
class Started:
    """A run whose workers are there, before its first step."""

    config: RunConfig
    folder: RunFolder
    run: Run
    workers: Workers
    roles: Roles
    source: PromptSource
    pool: EnginePool
    sampling: Sampling

    async def train(self, roles: Roles | None = None, *, export_to: Path | None = None) -> None:
        """All steps; `roles` may have something between the driver and its roles."""
        from ray_rl.app.build import build_session
        from ray_rl.loops.exporting import Export
        from ray_rl.loops.online import train
        from ray_rl.loops.stopping import Stop

        roles = roles or self.roles
        session = build_session(self.config, self.folder, self.run, roles, stop=Stop(grace_s=60), since=None, models={})
        await train(replace(session, final=None if export_to is None else Export(roles.actor, export_to)))

    def records(self) -> list[dict[str, Any]]:
        """What `metrics.jsonl` says."""
        return [json.loads(line) for line in self.folder.metrics_jsonl.read_text().splitlines()]

    def samples(self) -> list[dict[str, Any]]:
        """The samples of all steps."""
        files = sorted(self.folder.rollouts.iterdir())
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@asynccontextmanager
async def started(config: RunConfig, model: Path, *, beside: Sequence[TeamSpec] = ()) -> AsyncIterator[Started]:
    """The workers of a run, within the block; every model is `model`.

    Roles in `beside` have a worker each on a device of its own.
    """
    from ray_rl.app.build import build_collector, build_scores, sampling_of
    from ray_rl.app.records import open_run
    from ray_rl.app.workers import critic_over, engines_of, reference_over, roles_over, teams_of
    from ray_rl.cluster.start import started_workers
    from ray_rl.config.rules.check import check
    from ray_rl.data.chat import ChatTokenizer
    from ray_rl.data.source import build_source
    from ray_rl.metrics.console import RunConsole
    from ray_rl.planner.layout import Place
    from ray_rl.planner.plan import DeviceGroup, plan
    from ray_rl.rewards.combine import build_rewards
    from ray_rl.rollout.episodes import SingleTurn
    from ray_rl.rollout.pool import EnginePool
    from tests.run_folders import new_run_folder

    check(config)
    folder, layout = new_run_folder(config), plan(config)
    for spec in beside:
        group = DeviceGroup((spec.role,), (Place(0, ()),), gpus=0, cpus=config.cluster.cpus_per_worker)
        layout = replace(layout, groups=(*layout.groups, group), workers=layout.workers | {spec.role: 1})
    async with AsyncExitStack() as stack:
        run = stack.enter_context(open_run(config, folder, RunConsole()))
        rewards = stack.enter_context(closing(build_rewards(config.rewards)))
        folders = dict.fromkeys(layout.workers, (str(model),))
        workers = await stack.enter_async_context(
            started_workers(
                layout,
                [*teams_of(config, layout, folders), *beside],
                engines_of(config, layout, folders),
                cluster=config.cluster,
                logs=folder.logs,
                note=run.note,
                tell=run.tell,
            )
        )
        tokenizer = ChatTokenizer(model)
        source = build_source(config.data, seed=config.run.seed, tokenizer=tokenizer)
        pool = EnginePool(workers.engines, timeout_s=config.rollout.timeout_s, router=workers.router)
        sampling = sampling_of(config, tokenizer.ends_of(config.rollout, config.data))
        rollouts = build_collector(config, source, pool, SingleTurn(pool, sampling), rewards)
        critic = critic_over(workers)
        scores = build_scores(config, workers.actor, critic, reference_over(workers, config))
        roles = roles_over(workers, rollouts=rollouts, weights=workers.weights, critic=critic, scores=scores)
        yield Started(config, folder, run, workers, roles, source, pool, sampling)


async def whole_run(
    config: RunConfig, model: Path, *, watch: Callable[[Any], Any] = lambda roles: roles
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What `metrics.jsonl` and the samples of all steps say after the run; every model is `model`.

    `watch` may put something between the driver and its roles.
    """
    async with started(config, model) as run:
        await run.train(watch(run.roles))
    return run.records(), run.samples()
