"""Moves checkpoints out of the way, without deleting them, when a run returns to an earlier step."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from ray_rl.checkpoint.store import disk_errors_explained
from ray_rl.metrics.modes import make_folder


def set_checkpoints_aside(folder: Path, *, after: int) -> Path | None:
    """Moves the checkpoints of later steps into a new folder, `checkpoints/aside_<time>`.

    The new folder is on the same file system, so that each move is one rename even where `checkpoints` is a mount or a
    link. The newest checkpoint moves last: until then, a kill leaves a run that continues from it.

    Args:
        folder: The checkpoints of a run, owned by this process.
        after: The step whose checkpoint becomes the newest.

    Returns:
        The new folder, or None if there is no later checkpoint.

    Raises:
        CheckpointError: The file system refuses.
    """
    with disk_errors_explained(folder):
        found = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"step_(\d+)", path.name))}
        later = sorted(step for step in found if step > after)
        if not later:
            return None
        aside = folder / f"aside_{datetime.now(UTC):%Y%m%d-%H%M%S_%f}"
        make_folder(aside)
        for step in later:
            os.rename(found[step], aside / found[step].name)
    return aside
