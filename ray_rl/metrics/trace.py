"""Writes a Chrome trace of the phases, for chrome://tracing or ui.perfetto.dev.

Format: "Trace Event Format", JSON array form; complete events (`ph: X`), times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_rl.metrics.whole_pieces import PieceFile

_END = b"\n]\n"


class TraceWriter:
    """Appends events to a file that is complete, valid JSON after every `flush`, and so also after a kill."""

    def __init__(self, path: Path, *, name: str) -> None:
        """Starts the file.

        Args:
            path: the file; it is overwritten.
            name: title of the process in the viewer.
        """
        self._file = PieceFile(path, keep=False)
        self._file.append(b"[" + _END)
        self._events: list[dict[str, Any]] = [_metadata("process_name", 0, name)]
        self._rows: dict[str, int] = {}
        self._is_empty = True

    def add(self, row: str, name: str, *, start_s: float, duration_s: float, args: Mapping[str, Any]) -> None:
        """Remembers one span until the next `flush`.

        Args:
            row: row of the viewer ("thread").
            name: title of the span.
            start_s: seconds since the start of the run.
            duration_s: length of the span.
            args: JSON values that are shown when the span is clicked.
        """
        if row not in self._rows:
            self._rows[row] = len(self._rows) + 1
            self._events.append(_metadata("thread_name", self._rows[row], row))
        self._events.append(
            {
                "ph": "X",
                "name": name,
                "pid": 1,
                "tid": self._rows[row],
                "ts": round(start_s * 1e6),
                "dur": round(duration_s * 1e6),
                "args": dict(args),
            }
        )

    def flush(self) -> None:
        """Writes the remembered spans and a new closing bracket over the old closing bracket, in one piece.

        Raises:
            RecordError: the spans do not fit on the disk; the file is valid without them.
        """
        if not self._events:
            return
        lines = ",\n".join(json.dumps(event, allow_nan=False) for event in self._events)
        self._file.append((b"\n" if self._is_empty else b",\n") + lines.encode("ascii") + _END, over=_END)
        self._events.clear()
        self._is_empty = False

    def close(self) -> None:
        """Flushes and closes the file."""
        try:
            self.flush()
        finally:
            self._file.close()


def _metadata(kind: str, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": 1, "tid": tid, "args": {"name": name}}
