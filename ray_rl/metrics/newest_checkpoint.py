"""`newest_checkpoint.json`: which checkpoint a run completed last, written outside of the folder that holds it.

A mount that is late makes `checkpoints/` look empty, as it is in a run that has not saved yet. This file tells the two
apart, so that the first is not taken for a run to start over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ray_rl.metrics.whole_pieces import write_whole


@dataclass(frozen=True, slots=True)
class Newest:
    """What the file says."""

    step: int | None
    """None: no checkpoint was completed yet."""


def write_newest(path: Path, step: int | None) -> None:
    """Writes the file; whole and on disk when this returns.

    Raises:
        RecordError: It does not fit on the disk; the file is as it was.
    """
    if read_newest(path) != Newest(step):
        write_whole(path, iter([json.dumps({"step": step}).encode(), b"\n"]), flush=True)


def read_newest(path: Path) -> Newest | None:
    """What the file says; None if there is none, as in a folder of an older version, or if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or "step" not in found:
        return None
    step = found["step"]
    return Newest(step) if step is None or type(step) is int else None
