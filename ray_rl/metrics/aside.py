"""Moves records of steps that will be trained again out of the way: nothing that a run wrote is deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ray_rl.metrics.modes import make_folder
from ray_rl.metrics.step_records import record_of
from ray_rl.metrics.whole_pieces import write_whole

ROLLOUTS, EXAMPLES = "rollouts", "examples"
"""Folders of a run with one file per step, by what the run trains on."""
ASIDE = "aside"
"""Folder of a run with one subfolder for each time that the run went back to an earlier step."""


def set_records_aside(root: Path, *, step: int, others: Sequence[Path] = ()) -> Path | None:
    """Moves the records of a run folder about later steps into a new folder, `aside/<time>_after_step_<step>`.

    Those are lines of `metrics.jsonl`, damaged lines included, and files of `rollouts/` or `examples/`. A kill at any
    moment loses none of them: lines are copied before they are removed, and files are renamed.

    Args:
        root: The run folder.
        step: The last step whose records stay.
        others: Files and folders that belong to the records; moved only if there are such records.

    Returns:
        The new folder, or None if there is nothing to move.

    Raises:
        RecordError: The disk is full.
        OSError: The file system refuses.
    """
    metrics = root / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.is_file() else []
    kept: list[bytes] = []
    later: list[bytes] = []
    for line in lines:
        found = record_of(line)
        (kept if found is not None and found["step"] <= step else later).append(line)
    files = [file for name in (ROLLOUTS, EXAMPLES) for file in sorted((root / name).glob("step_*.jsonl"))]
    samples = [file for file in files if step_of_samples(file) > step]
    if not later and not samples:
        return None
    aside = new_aside(root, step=step)
    if later:
        write_whole(aside / "metrics.jsonl", iter(later), flush=True)
        write_whole(metrics, iter(kept), flush=True)
    for file in samples:
        make_folder(aside / file.parent.name, exist_ok=True)
        os.rename(file, aside / file.parent.name / file.name)
    for path in others:
        if os.path.lexists(path):
            os.rename(path, aside / path.name)
    return aside


def new_aside(root: Path, *, step: int) -> Path:
    """Makes an empty folder for files that belong to steps after `step`.

    Raises:
        OSError: The file system refuses.
    """
    parent = root / ASIDE
    make_folder(parent, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}_after_step_{step}"
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            make_folder(folder)
        except FileExistsError:
            number += 1
        else:
            return folder


def step_of_samples(file: Path) -> int:
    """Returns the step of a file in `rollouts/` or `examples/`; -1 for a file that no run wrote."""
    match = re.match(r"step_(\d+)\.", file.name)
    return -1 if match is None else int(match[1])
