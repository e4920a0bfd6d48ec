"""Reads the state of a run from its folder, robustly: another release or program may have written the files."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray_rl.checkpoint.best import evaluations_since_best, has_stalled, kept_best
from ray_rl.checkpoint.export_marks import exported_step
from ray_rl.checkpoint.reading import checkpoint_steps
from ray_rl.config.loading.yaml_tree import read_yaml
from ray_rl.config.run import RunSection
from ray_rl.errors import ConfigError, UserError
from ray_rl.metrics.folder_lock import Ending, ending_of, holder_of, pid_space
from ray_rl.metrics.step_records import step_records
from ray_rl.program import program

State = Literal["running", "done", "unreadable"] | Ending
"""An ending is the state of a run that is not done."""
TAIL_BYTES = 2**18
"""Bytes at the end of the records that are searched for the last record."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that trains in a folder, from its lock; fields that the lock does not have are None."""

    pid: int | None
    host: str | None
    pids_of: str | None
    """Id of the pid's namespace: a boot of a machine, and a container on it."""


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run, from the files in its folder."""

    folder: Path
    state: State
    owner: Owner | None
    """The process that trains; None if the run is not running."""
    step: int
    """The last recorded step."""
    steps: int | None
    """Number of steps of the run; None if its configuration does not have it."""
    reward: float | None
    """Mean reward of the last step that had one."""
    loss: float | None
    """Loss of the last step of a run that learns from examples."""
    checkpoint: int | None
    """Step of the newest checkpoint with a manifest, which is not verified."""
    is_exported: bool
    age_s: float
    """Seconds since a file was last written."""
    grace_s: float
    problem: str = ""
    """Why the configuration cannot be read; empty if it can."""

    @property
    def next(self) -> str:
        """The command to run next."""
        folder = shlex.quote(str(self.folder))
        match self.state:
            case "running":
                return f"{program()} stop {folder}"
            case "done" if self.is_exported:
                return f"{program()} export {folder} --to DIR"
            case "done":
                return f"{program()} resume {folder} run.steps=N"
            case "unreadable":
                return "see its config.yaml"
            case _ if self.checkpoint is not None:
                return f"{program()} resume {folder}"
            case _:
                return f"{program()} train {shlex.quote(str(self.folder / 'config.yaml'))} --resume auto"


def is_run_folder(folder: Path) -> bool:
    """Returns whether a folder has a configuration and another file or folder that runs write."""
    others = ("environment.json", "metrics.jsonl", "rollouts", "examples", "checkpoints", "lock")
    return (folder / "config.yaml").exists() and any((folder / name).exists() for name in others)


def run_folders(below: Path, *, levels: int = 3) -> Iterator[Path]:
    """Yields every run folder at or below a folder, down to `levels` levels."""
    if is_run_folder(below):
        yield below
    elif levels:
        try:
            inner = sorted(path for path in below.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError:
            return
        for folder in inner:
            yield from run_folders(folder, levels=levels - 1)


def run_state(folder: Path) -> RunState:
    """Returns the state of a run.

    Raises:
        UserError: the folder is not a run folder.
    """
    if not is_run_folder(folder):
        raise UserError(f"{folder}: not a run folder, it has no config.yaml; give the folder that `ray-rl train` left")
    config: dict[str, Any] = {}
    problem = ""
    try:
        config = read_yaml(folder / "config.yaml").plain()
    except ConfigError as error:
        problem = str(error)
    last = _last_records(folder / "metrics.jsonl")
    steps, grace_s = _at(config, "run", "steps"), _at(config, "run", "grace_s")
    step = last[0]["step"] if last else 0
    planned = steps if type(steps) is int else None
    owner = owner_of(folder)
    wants_export = _at(config, "checkpoint", "export") is not False
    export = folder / "export"
    exported = exported_step(export) if (export / "ray_rl.json").is_file() else (step if export.is_dir() else None)
    newest = _newest_checkpoint(folder / "checkpoints")
    checkpoint = folder / "checkpoints" / f"step_{newest}"
    best = kept_best(checkpoint)
    patience, since = _at(config, "run", "patience"), evaluations_since_best(checkpoint)
    is_stalled = type(patience) is int and since is not None and has_stalled(since, patience)
    is_over = planned is not None and (step >= planned or is_stalled)
    is_done = is_over and (not wants_export or exported == (step if best is None else best))
    ended: State = "done" if is_done else ending_of(folder)
    state: State = "running" if owner else "unreadable" if problem else ended
    return RunState(
        folder=folder,
        state=state,
        owner=owner,
        step=step,
        steps=planned,
        reward=_last_value(last, "reward/mean"),
        loss=_last_value(last, f"{_at(config, 'algorithm', 'kind')}/loss"),
        checkpoint=newest,
        is_exported=exported is not None,
        age_s=max(0.0, time.time() - _last_change(folder)),
        grace_s=float(grace_s) if isinstance(grace_s, int | float) else RunSection.model_fields["grace_s"].default,
        problem=problem,
    )


def owner_of(folder: Path) -> Owner | None:
    """Returns the process that trains in a folder; None if there is none or it has ended."""
    holder = holder_of(folder)
    if holder is None:
        return None
    pid, host, pids_of = holder.get("pid"), holder.get("host"), holder.get("pids_of")
    return Owner(
        pid if type(pid) is int and pid > 1 else None,
        host if isinstance(host, str) else None,
        pids_of if isinstance(pids_of, str) else None,
    )


def is_here(owner: Owner) -> bool:
    """Returns whether the owner's pid is valid here, so that this process can signal it."""
    return owner.host == socket.gethostname() and owner.pids_of in (None, pid_space())


def _at(config: Any, section: str, key: str) -> Any:
    inner = config.get(section) if isinstance(config, dict) else None
    return inner.get(key) if isinstance(inner, dict) else None


def _last_value(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Returns the value of the newest record that has one."""
    return next((float(record[key]) for record in records if isinstance(record.get(key), int | float)), None)


def _last_records(path: Path) -> list[dict[str, Any]]:
    """Returns the last records, newest first; none if the file cannot be read."""
    try:
        return step_records(path, tail_bytes=TAIL_BYTES)[::-1]
    except OSError:
        return []


def _newest_checkpoint(folder: Path) -> int | None:
    try:
        return max(checkpoint_steps(folder), default=None)
    except OSError:
        return None


def _last_change(folder: Path) -> float:
    changed = [0.0]
    for name in ("metrics.jsonl", "logs/driver.log", "config.yaml", "lock", "checkpoints"):
        try:
            changed.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(changed)
