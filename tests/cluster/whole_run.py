"""A run with real workers on the cluster of these tests."""

import json
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

from ray_rl.config import RunConfig


async def whole_run(
    config: RunConfig, model: Path, *, watch: Callable[[Any], Any] = lambda roles: roles
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What `metrics.jsonl` and the samples of all steps say after the run; every model is `model`.

    `watch` may put something between the driver and its roles.
    """
    from ray_rl.checkpoint.store import CheckpointStore
    from ray_rl.cluster.start import started_workers
    from ray_rl.config.rules import check
    from ray_rl.data.chat import ChatTokenizer
    from ray_rl.data.source import build_source
    from ray_rl.loops.checkpoints import Checkpoints
    from ray_rl.loops.online import train
    from ray_rl.loops.roles import Roles
    from ray_rl.loops.stopping import Stop
    from ray_rl.metrics.console import RunConsole
    from ray_rl.metrics.run import Run
    from ray_rl.metrics.run_folder import RunFolder
    from ray_rl.planner.plan import plan
    from ray_rl.rewards.combine import build_rewards
    from ray_rl.rollout.collector import Collector

    check(config)
    folder, layout = RunFolder.create(config), plan(config)
    async with AsyncExitStack() as stack:
        run = stack.enter_context(Run(config, folder, RunConsole()))
        rewards = stack.enter_context(closing(build_rewards(config.rewards)))
        folders = dict.fromkeys(layout.workers, (str(model),))
        workers = await stack.enter_async_context(
            started_workers(config, layout, folders=folders, logs=folder.logs, note=run.note, tell=run.tell)
        )
        roles = Roles(
            rollouts=Collector(
                config,
                build_source(config.data, seed=0, tokenizer=ChatTokenizer(model)),
                workers.engines,
                rewards,
                router=workers.router,
            ),
            actor=workers.actor,
            weights=workers.weights,
            critic=workers.critic,
            reference=workers.reference,
        )
        roles = watch(roles)
        store = CheckpointStore(folder.checkpoints, keep_last=1, keep_every=None)
        checkpoints = Checkpoints(config, store, roles, since=None)
        await train(config, roles, run, checkpoints=checkpoints, stop=Stop(grace_s=60), export_to=None)
    records = [json.loads(line) for line in folder.metrics_jsonl.read_text().splitlines()]
    samples = [json.loads(line) for file in sorted(folder.rollouts.iterdir()) for line in file.read_text().splitlines()]
    return records, samples
