"""The commands that a person may want next, after each possible end of a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ray_rl.errors import Preempted, UserError
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.program import program


def resume_command(root: Path) -> str:
    """Returns the command that continues the run of a folder."""
    return f"{program()} resume {word(root)}"


def shown(path: Path) -> str:
    """Returns the shortest form of the path, seen from the working directory."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # It was deleted.
        return str(path)
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def word(path: Path) -> str:
    """Returns the path as one word of a command, seen from the working directory."""
    return shlex.quote(shown(path))


NO_CHECKPOINT = "there is no checkpoint yet: run the same command again with --resume auto"
"""Advice for a run without a checkpoint. It also holds if the run folder was removed because it contained no step."""


def next_commands(
    folder: RunFolder,
    *,
    failed: BaseException | None,
    saved: int | None,
    steps: int,
    uses: Mapping[str, str],
    ended_early: bool = False,
) -> list[tuple[str, str]]:
    """Returns the label and command of each thing to do next.

    Args:
        folder: the folder of the run.
        failed: the exception that ended the run early; None if the run is done.
        saved: the step of the newest checkpoint; None if there is none.
        steps: number of steps that the run has trained.
        uses: commands and settings that use the exported model, by label.
        ended_early: whether the run is done because its evaluations did not improve any more.
    """
    curves = ("curves", f"tensorboard --logdir {word(folder.tensorboard)}")
    if failed is None:
        more = "run.patience=null" if ended_early else f"run.steps={2 * steps}"
        return [*_of_a_model(folder, saved, uses), curves, *_more_steps(folder, saved, more)]
    logs = [] if isinstance(failed, Preempted | KeyboardInterrupt) else [("logs", f"{shown(folder.logs)}/")]
    return [*logs, _again(folder, failed, saved), *([curves] if steps else [])]


def _of_a_model(folder: RunFolder, saved: int | None, uses: Mapping[str, str]) -> list[tuple[str, str]]:
    root = word(folder.root)
    if folder.export.is_dir():
        return [
            ("model", shown(folder.export)),
            *uses.items(),
            ("copy it", f"{program()} export {root} --to my-model"),
        ]
    return [] if saved is None else [("model", f"{program()} export {root} --to my-model")]


def _more_steps(folder: RunFolder, saved: int | None, change: str) -> list[tuple[str, str]]:
    return [] if saved is None else [("continue", f"{resume_command(folder.root)} {change}")]


def _again(folder: RunFolder, failed: BaseException, saved: int | None) -> tuple[str, str]:
    is_input = isinstance(failed, UserError)
    if saved is None:
        return "retry", f"correct the input; {NO_CHECKPOINT}" if is_input else NO_CHECKPOINT
    continues = "correct the input, then continue" if is_input else "continues"
    return "continue", f"{resume_command(folder.root)}    ({continues} from the newest checkpoint, step {saved})"
