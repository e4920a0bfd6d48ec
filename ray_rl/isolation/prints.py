"""Passes on what a worker process prints to the standard error of this process, up to a limit."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import IO

CALL_BYTES = 16 * 1024
"""The most that one call may print."""
TOTAL_BYTES = 16 * 1024 * 1024
"""The most that all calls of one process may print together: a run makes many calls."""

_CHUNK_BYTES = 64 * 1024
_STANDARD_ERROR = 2
_CLOSE_S = 1.0


class Prints:
    """Reads a pipe until its other end is closed, and passes on its beginning."""

    def __init__(self, pipe: IO[bytes]) -> None:
        """Starts the thread that reads.

        Args:
            pipe: open for reading, unbuffered; the thread closes it.
        """
        self._pipe = pipe
        self._left = CALL_BYTES
        self._total = TOTAL_BYTES
        self._dropped = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="ray-rl-sandbox-prints", daemon=True)
        self._thread.start()

    def allow_call(self) -> None:
        """Allows one more call to print, and reports how many bytes of earlier calls were dropped."""
        with self._lock:
            self._say_dropped()
            self._left = min(CALL_BYTES, self._total)

    def close(self) -> None:
        """Waits until all printed text is passed on, if the other end is closed."""
        self._thread.join(timeout=_CLOSE_S)

    def _read(self) -> None:
        with self._pipe:
            while chunk := self._pipe.read(_CHUNK_BYTES):
                with self._lock:
                    shown = chunk[: self._left]
                    self._left -= len(shown)
                    self._total -= len(shown)
                    self._dropped += len(chunk) - len(shown)
                    _write(shown)
        with self._lock:
            self._say_dropped()

    def _say_dropped(self) -> None:
        if self._dropped:
            _write(f"\n[{self._dropped} more bytes that a function printed are not shown]\n".encode())
            self._dropped = 0


def _write(data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: that must not end the run
        while data:
            data = data[os.write(_STANDARD_ERROR, data) :]
