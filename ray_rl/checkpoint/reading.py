"""Reads checkpoints without owning the run: nothing is renamed, repaired or removed."""

from __future__ import annotations

import re
from pathlib import Path

from ray_rl.checkpoint.store import MANIFEST, Checkpoint, verified


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a run's `checkpoints` folder, ascending. Does not verify them.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"step_(\d+)", path.name) for path in folder.iterdir() if (path / MANIFEST).is_file())
    return sorted(int(match[1]) for match in found if match)


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Returns the checkpoint of a step, verified with its manifest.

    Raises:
        CheckpointError: the checkpoint does not verify, or the run has removed it in the meantime.
    """
    return verified(folder / f"step_{step}", step)
