"""Reads from a checkpoint which step of its run is the best one so far; another release may have written the file."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "evaluation.json"
"""File in the folder of a checkpoint of a run that learns from examples."""


def kept_best(checkpoint: Path) -> int | None:
    """Returns the best step of a run at a checkpoint; None if the run has no evaluation, or does not keep the best."""
    try:
        found = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    step = found.get("step") if isinstance(found, dict) and found.get("is_kept") is True else None
    return step if type(step) is int else None
