"""`newest_checkpoint.json` records the newest complete checkpoint, outside of the folder that holds the checkpoints.

If `checkpoints/` is a mount that is not available yet, it looks empty, as in a run that has not saved. This file
distinguishes the two cases, so that such a run is not started from step 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ray_rl.metrics.whole_pieces import write_whole


@dataclass(frozen=True, slots=True)
class Newest:
    """The content of the file."""

    step: int | None
    """Step of the checkpoint; None if no checkpoint was completed yet."""


def write_newest(path: Path, step: int | None) -> None:
    """Writes the file. It is complete and on disk when this returns.

    Raises:
        RecordError: It does not fit on the disk; the file is as it was.
    """
    if read_newest(path) != Newest(step):
        write_whole(path, iter([json.dumps({"step": step}).encode(), b"\n"]), flush=True)


def read_newest(path: Path) -> Newest | None:
    """Returns the content of the file; None if it is damaged or missing, as in a folder of an older version."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or "step" not in found:
        return None
    step = found["step"]
    return Newest(step) if step is None or type(step) is int else None
