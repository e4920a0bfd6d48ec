"""From the folder of a run to the checkpoint from which it goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ray_rl.checkpoint.store import Checkpoint, CheckpointStore
from ray_rl.config import RunConfig
from ray_rl.config.resume_rules import changes
from ray_rl.config.yaml_tree import read_yaml
from ray_rl.errors import UserError
from ray_rl.metrics.run_folder import RunFolder


def store_of(config: RunConfig, folder: RunFolder) -> CheckpointStore:
    """The checkpoints of a run."""
    section = config.checkpoint
    return CheckpointStore(folder.checkpoints, keep_last=section.keep_last, keep_every=section.keep_every)


def reopened(
    config: RunConfig, stack: ExitStack, *, is_required: bool, note: Callable[[str], None]
) -> tuple[Checkpoint | None, RunFolder]:
    """The newest checkpoint of a run that verifies, and its folder, made ready to go on behind it.

    Args:
        config: with which the run goes on.
        stack: the folder is kept for this process until it is closed.
        is_required: without a checkpoint, refuse; else the run starts anew, and says so.
        note: told where the run goes on, what changed, and which checkpoints were passed over.

    Raises:
        UserError: there is no checkpoint, the configuration differs in what must stay, or another process has the run.
    """
    folder = RunFolder.of(config)
    stack.enter_context(folder.owned())
    changed = changes(read_yaml(folder.config_yaml).plain(), config)
    since = store_of(config, folder).latest(note)
    if since is None:
        _refuse_to_lose(folder, is_required=is_required)
        note(f"{folder.root}: no complete checkpoint; starting from step 0")
    else:
        note(f"{folder.root}: going on after step {since.step} of {config.run.steps}")
    for line in changed:
        note(f"changed: {line}")
    return since, RunFolder.reopen(config, step=0 if since is None else since.step)


def is_finished(config: RunConfig, folder: RunFolder, since: Checkpoint | None) -> bool:
    """Whether there is nothing left to do."""
    is_exported = folder.export.is_dir() or not config.checkpoint.export
    return since is not None and since.step >= config.run.steps and is_exported


def _refuse_to_lose(folder: RunFolder, *, is_required: bool) -> None:
    if is_required:
        raise UserError(
            f"{folder.checkpoints}: no complete checkpoint to go on from; start the run anew with `ray-rl train`"
        )
    if folder.export.is_dir():
        raise UserError(
            f"{folder.root}: the run has ended and left no checkpoint (checkpoint.every_steps=null), so it cannot go "
            "on, and starting anew would overwrite it; set run.name to a new name"
        )
