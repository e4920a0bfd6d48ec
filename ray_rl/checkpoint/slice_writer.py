"""Writes slices to disk in the background of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_rl.checkpoint.slices import Slice, write_slices
from ray_rl.errors import CheckpointError


class SliceWriter:
    """Copies slices to host memory, while training waits, and writes the copy in a thread."""

    def __init__(self) -> None:
        """Makes a writer without a file in progress."""
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def write(self, path: Path, slices: Iterable[Slice], state: Mapping[str, Any]) -> None:
        """Starts writing a file and returns when everything is copied; see `write_slices`.

        Raises:
            CheckpointError: the previous file is still being written.
        """
        if not self.is_written():
            raise CheckpointError(f"{path}: the checkpoint before it is still being written")
        # Copied even if they are on the host: they are in use, and the next optimizer step changes them.
        copies = [(name, start, values.detach().to("cpu", copy=True)) for name, start, values in slices]
        self._writing = self._threads.submit(write_slices, path, copies, dict(state))

    def is_written(self) -> bool:
        """Returns whether everything is written.

        Raises:
            CheckpointError: the file system refused; raised once.
        """
        if self._writing is None:
            return True
        if not self._writing.done():
            return False
        written, self._writing = self._writing, None
        written.result(timeout=0)  # the future is done
        return True
