"""Reads `metrics.jsonl`, which another release may have written, and a kill may have cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def record_of(line: bytes) -> dict[str, Any] | None:
    """Returns the record of a step in a line; None for a damaged or incomplete line."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def step_records(file: Path, *, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """Returns the records of all steps, the first step first, without damaged and incomplete lines.

    Args:
        file: the `metrics.jsonl` of a run folder.
        tail_bytes: read only so many bytes at the end; None reads all.

    Raises:
        OSError: the file does not exist, or cannot be read.
    """
    with file.open("rb") as opened:
        if tail_bytes is not None:
            opened.seek(max(0, file.stat().st_size - tail_bytes))
        lines = opened.read().splitlines(keepends=True)
    return [record for line in lines if (record := record_of(line)) is not None]
