"""Reads from a checkpoint which step of its run is the best one; another release may have written the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "evaluation.json"
"""File in the folder of a checkpoint of a run that learns from examples."""


def kept_best(checkpoint: Path) -> int | None:
    """Returns the best step of a run at a checkpoint; None if the run has no evaluation, or does not keep the best."""
    found = _evaluation(checkpoint)
    step = found.get("step") if found.get("is_kept") is True else None
    return step if type(step) is int else None


def evaluations_since_best(checkpoint: Path) -> int | None:
    """Returns the number of evaluations since the best one at a checkpoint; None if the run has no evaluation."""
    since = _evaluation(checkpoint).get("since")
    return since if type(since) is int else None


def has_stalled(since: int, patience: int | None) -> bool:
    """Returns whether `run.patience` ends a run whose last `since` evaluations were not better than the best one."""
    return patience is not None and since >= patience


def _evaluation(checkpoint: Path) -> dict[str, Any]:
    try:
        found = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
