"""Opens the folder of a run and finds the checkpoint that it continues from."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from ray_rl.checkpoint.aside import set_checkpoints_aside
from ray_rl.checkpoint.export_marks import exported_step
from ray_rl.checkpoint.store import Checkpoint, CheckpointStore
from ray_rl.config import RunConfig
from ray_rl.config.loading.load import dump_config
from ray_rl.config.loading.old_keys import refuse_old_keys
from ray_rl.config.loading.yaml_tree import read_yaml
from ray_rl.config.rules.resume import changes
from ray_rl.errors import CheckpointError, Preempted, UserError
from ray_rl.loops.evaluation import exported_after, is_over
from ray_rl.metrics.aside import new_aside
from ray_rl.metrics.folder_lock import mark_ending
from ray_rl.metrics.newest_checkpoint import read_newest, write_newest
from ray_rl.metrics.run_folder import RunFolder, check_kinds
from ray_rl.program import program

Resume = Literal["auto", "required"]
"""auto: continue if there is a checkpoint, else start. required: continue from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The folder of a run, prepared, and the checkpoint that the run continues from; None for a new run."""

    folder: RunFolder
    since: Checkpoint | None


def store_of(config: RunConfig, folder: RunFolder) -> CheckpointStore:
    """Returns the store of a run's checkpoints."""
    section = config.checkpoint
    return CheckpointStore(folder.checkpoints, keep_last=section.keep_last, keep_every=section.keep_every)


def opened(
    config: RunConfig,
    stack: ExitStack,
    *,
    resume: Resume | None,
    note: Callable[[str], None],
    from_step: int | None = None,
    require_same: Callable[[Checkpoint], None] = lambda since: None,
) -> Opened | None:
    """Opens the folder of a run and owns it for this process until the stack is closed.

    A folder in which no step was trained, for example after a failed start, is prepared like a new one.

    Args:
        config: The configuration of the run from now on.
        stack: Closed when the run has ended.
        resume: None: the folder must not exist. auto: it may. required: it must, with a checkpoint.
        note: Called with each message: where the run continues, what changed, what was moved, bad checkpoints.
        from_step: The checkpoint to continue from, with `required`; None is the newest one that verifies. Later
            checkpoints and records are moved aside.
        require_same: Called with the checkpoint before anything is written; raises if its data or models have changed.

    Returns:
        None if the run is finished.

    Raises:
        UserError: There is no checkpoint, or configuration, data or a model changed that must not. Nothing was written.
        CheckpointError: The run had a checkpoint, but none verifies. Nothing was changed.
        FolderHeld: Another live process has the folder.
        RecordError: The disk is full.
    """
    folder = RunFolder.of(config.run)
    if resume != "required":
        folder.make(may_exist=resume == "auto")
    stack.enter_context(folder.owned())
    check_kinds(folder)
    since = newest_checkpoint(config, folder, note) if from_step is None else _of_step(config, folder, from_step)
    if is_finished(config, folder, since):
        if since is not None and since.step < config.steps:
            note(
                f"{folder.root}: the run ended early, after step {since.step} of {config.steps} (run.patience="
                f"{config.run.patience}); set run.patience=null to train on"
            )
        else:
            note(f"{folder.root}: all {config.steps} steps are done; raise run.steps to train on")
        return None
    if since is None:
        _check_start(folder, is_required=resume == "required")
        if folder.has_records:
            note(f"{folder.root}: no checkpoint was completed; starting from step 0")
    else:
        _compare(folder, config, since, require_same, note)
        if from_step is not None:
            _go_back(folder, since.step, note)
    mark_ending(folder.root, "killed")
    stack.push(_remove_if_in_vain(folder, note))
    step = None if since is None else since.step
    folder.prepare(dump_config(config), step=step, group_readable=config.run.group_readable, note=note)
    return Opened(folder, since)


def _compare(
    folder: RunFolder,
    config: RunConfig,
    since: Checkpoint,
    require_same: Callable[[Checkpoint], None],
    note: Callable[[str], None],
) -> None:
    """Checks that a run may continue from a checkpoint, and tells what has changed in its configuration."""
    changed = _changes(folder, config)
    require_same(since)
    note(f"{folder.root}: resuming after step {since.step} of {config.steps}")
    for line in changed:
        note(f"changed: {line}")


def newest_checkpoint(config: RunConfig, folder: RunFolder, note: Callable[[str], None]) -> Checkpoint | None:
    """Returns the newest checkpoint that verifies; None for a run that never completed one.

    Args:
        config: The configuration of the run.
        folder: The run folder, owned by this process.
        note: Called with a text for each checkpoint that does not verify.

    Raises:
        CheckpointError: No checkpoint verifies, and there is evidence that the run had completed one.
    """
    passed: list[str] = []

    def pass_over(line: str) -> None:
        passed.append(line)
        note(line)

    since = store_of(config, folder).latest(pass_over)
    known = read_newest(folder.newest_checkpoint_json)
    if since is not None:
        if known is not None and known.step is not None and known.step > since.step:
            note(f"{folder.checkpoints}: the run had a checkpoint of step {known.step}, which is not usable now")
        return since
    if is_finished(config, folder, None):
        return None
    evidence = _evidence(folder, passed)
    if evidence is not None:
        raise CheckpointError(
            f"{folder.checkpoints}: no checkpoint to continue from, but {evidence}. Nothing was changed. If the "
            "checkpoints are on a mount that is missing or broken, run the same command again when it works; if they "
            f"are lost, rename {folder.root} to start from step 0"
        )
    return None


def is_finished(config: RunConfig, folder: RunFolder, since: Checkpoint | None) -> bool:
    """Returns whether all steps are trained, or the run has ended early, and the export is that of the right step."""
    exported = exported_step(folder.export) if config.checkpoint.export else None
    if since is None:
        return exported is not None and exported >= config.steps
    if not is_over(since, steps=config.steps, patience=config.run.patience):
        return False
    return not config.checkpoint.export or exported == exported_after(since, best_by=config.checkpoint.keep_best)


def _evidence(folder: RunFolder, passed: list[str]) -> str | None:
    """Returns why a run without a usable checkpoint must have completed one; None if it may never have done so."""
    if passed:
        return f"there are {len(passed)} that do not verify (the newest: {passed[0]})"
    if folder.checkpoints.is_symlink() and not folder.checkpoints.exists():
        return f"it is a link to {os.readlink(folder.checkpoints)}, which does not exist now"
    known = read_newest(folder.newest_checkpoint_json)
    if known is not None:
        return (
            None
            if known.step is None
            else f"the run completed one of step {known.step}, says {folder.newest_checkpoint_json.name}"
        )
    if folder.has_records:  # older versions did not record whether they had completed a checkpoint
        return f"there are records of trained steps in {folder.root}"
    return None


def _check_start(folder: RunFolder, *, is_required: bool) -> None:
    """Checks that a run may start from step 0 in its folder.

    Raises:
        UserError: the user asked to resume, or the start would overwrite something of value.
    """
    if is_required:
        raise UserError(
            f"{folder.checkpoints}: no complete checkpoint to resume from; `{program()} train {folder.last_config} "
            "--resume auto` starts the run from step 0"
        )
    if folder.export.is_dir():
        raise UserError(
            f"{folder.root}: the run has ended and left no checkpoint (checkpoint.every_steps=null), so it cannot "
            "continue, and starting from step 0 would overwrite it; set run.name to a new name"
        )
    foreign = folder.beyond_a_start
    if foreign and folder.last_config is None:
        raise UserError(
            f"run.name={folder.root.name!r}: {folder.root} holds {', '.join(foreign[:5])} and no config.yaml, so it "
            "is not the folder of a run; set run.name to a new name"
        )


def _of_step(config: RunConfig, folder: RunFolder, step: int) -> Checkpoint:
    store = store_of(config, folder)
    steps = store.steps()
    if step not in steps:
        others = f"those of steps {', '.join(map(str, steps))}" if steps else "none"
        raise UserError(f"--step {step}: {folder.checkpoints} has no checkpoint of this step; it has {others}")
    return store.load(step)


def _changes(folder: RunFolder, config: RunConfig) -> list[str]:
    """Returns the differences to the previous configuration of the run."""
    file = folder.last_config
    if file is None:
        raise UserError(
            f"{folder.config_yaml}: no such file, and the run has a checkpoint; copy the configuration that it was "
            "trained with to this place"
        )
    before = read_yaml(file)
    refuse_old_keys(before, file)
    try:
        return changes(before.plain(), config)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not the whole configuration of a run ({error!r} is missing or of another type); put back the "
            "file that the run wrote"
        ) from None


def _go_back(folder: RunFolder, step: int, note: Callable[[str], None]) -> None:
    """Makes the checkpoint of a step the newest one; later ones, and an export of a later step, are moved aside."""
    aside = set_checkpoints_aside(folder.checkpoints, after=step)
    if aside is not None:
        note(f"the checkpoints after step {step} were moved to {aside}")
    write_newest(folder.newest_checkpoint_json, step)
    if folder.export.is_dir() and exported_step(folder.export) != step:
        kept = new_aside(folder.root, step=step)
        folder.export.rename(kept / folder.export.name)
        note(f"the export was moved to {kept}")


def _remove_if_in_vain(folder: RunFolder, note: Callable[[str], None]) -> Callable[..., None]:
    """Returns a callback for the end of a run: it marks the ending, and removes the folder if it has nothing of value.

    Logs are of value unless the error explains everything: wrong input of the user, or a stop by the user.
    """
    had_logs = any(folder.logs.glob("*"))

    def remove(kind: object, error: BaseException | None, traceback: object) -> None:
        is_asked = error is None or isinstance(error, Preempted | KeyboardInterrupt)
        mark_ending(folder.root, "stopped" if is_asked else "failed")
        if error is None:
            return
        is_explained = isinstance(error, UserError | Preempted | KeyboardInterrupt) and not had_logs
        if folder.remove_unless_of_value(are_logs_of_value=not is_explained):
            note(f"{folder.root}: removed, since the run ended before its first step")
        elif not folder.has_records and not folder.beyond_a_start:
            note(
                f"{folder.root}: kept for its logs; `{program()} train` with `--resume auto` starts the run in it again"
            )

    return remove
