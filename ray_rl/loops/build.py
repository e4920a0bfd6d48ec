"""From a configuration to a finished run."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, closing

from ray_rl.cluster.environment import prepare_environment
from ray_rl.config import RunConfig
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.source import build_source
from ray_rl.loops.online import train
from ray_rl.loops.roles import Roles
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.models.packaged import resolve_model
from ray_rl.planner.hardware import resolve_dtype
from ray_rl.planner.plan import plan
from ray_rl.rewards.combine import build_rewards
from ray_rl.rollout.collector import Collector

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that was told to end, as shells have it."""


class Terminated(SystemExit):
    """SIGTERM came; all workers were ended."""


def run_training(config: RunConfig) -> None:
    """Runs a checked configuration from start to end.

    Raises:
        RayRLError: what went wrong; the run folder holds what had been logged until then.
    """
    prepare_environment(local=config.cluster.address is None)
    config = _resolved(config)
    folder = RunFolder.create(config)
    with Run(config, folder, RunConsole()) as run:
        try:
            asyncio.run(_train(config, folder, run))
        except asyncio.CancelledError:
            raise Terminated(TERMINATED) from None


def _resolved(config: RunConfig) -> RunConfig:
    """With what depends on the machine made explicit, so that the run folder says it."""
    dtype = resolve_dtype(config.model.dtype, config.cluster.accelerator)
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})


async def _train(config: RunConfig, folder: RunFolder, run: Run) -> None:
    # Ray reads its environment when it is imported: not before run_training has prepared it.
    from ray_rl.cluster.session import ray_session
    from ray_rl.cluster.start import started_workers

    layout = plan(config)
    async with AsyncExitStack() as stack:
        with run.phase("start"):
            run.note(f"loading {config.model.path} in {config.model.dtype}")
            model = resolve_model(config.model.path)
            folders = _folders(config, model)
            tokenizer = ChatTokenizer(model, trust_remote_code=config.model.trust_remote_code)
            source = build_source(config.data, seed=config.run.seed, tokenizer=tokenizer)
            rewards = stack.enter_context(closing(build_rewards(config.rewards, save=run.save_failed)))
            run.note(f"joining Ray at {config.cluster.address}" if config.cluster.address else "starting Ray")
            stack.enter_context(ray_session(config, layout))
            _end_on_sigterm()
            workers = await stack.enter_async_context(
                started_workers(config, layout, folders=folders, logs=folder.logs, note=run.note)
            )
        roles = Roles(
            rollouts=Collector(config, source, workers.engines, rewards),
            actor=workers.actor,
            weights=workers.weights,
            critic=workers.critic,
            reference=workers.reference,
            reward=workers.reward,
        )
        await train(config, roles, run, export_to=folder.export if config.checkpoint.export else None)


def _folders(config: RunConfig, model: str) -> dict[str, tuple[str, ...]]:
    """Folders or hub names of the models of each role; None in the configuration is the policy's."""
    paths = {
        "critic": None if config.critic is None else config.critic.path,
        "reference": None if config.reference is None else config.reference.path,
    }
    resolved = {role: (model if path is None else resolve_model(path),) for role, path in paths.items()}
    rewards = () if config.reward is None else tuple(resolve_model(path) for path in config.reward.paths)
    return {"actor": (model,), "rollout": (model,), "reward": rewards, **resolved}


def _end_on_sigterm() -> None:
    """Makes SIGTERM unwind this task, as Ctrl-C does: the handler that Ray installs aborts and leaves processes."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
