"""Shared memory of the processes on one host."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from ray_rl.errors import WeightSyncError
from ray_rl.sizes import MIB

SHARED = Path("/dev/shm")
POLL_S = 0.05


class Segment:
    """A segment of shared memory, as a flat uint8 tensor.

    Its creator holds a lock on it as long as it is mapped: a name without a lock belongs to a dead run, and
    `cluster.scratch` removes it.

    The name is needed only until all processes have mapped the segment. After that it can be removed, and the kernel
    frees the memory with the last process, however that ends.
    """

    def __init__(self, name: str, file: int, size: int) -> None:
        """Makes a segment from an open file; use `create` or `attach` instead."""
        self._path = SHARED / name
        self._map = mmap.mmap(file, size)
        os.close(file)
        self.buffer: Tensor = torch.frombuffer(self._map, dtype=torch.uint8)

    @classmethod
    def create(cls, name: str, size: int) -> Segment:
        """Returns a new segment.

        Raises:
            WeightSyncError: there is too little shared memory; the message says how much there is.
        """
        file = _created(SHARED / name)
        try:
            os.posix_fallocate(file, 0, size)  # fails now, instead of with a bus error during a publish
        except OSError as error:
            os.close(file)
            (SHARED / name).unlink()
            raise WeightSyncError(
                f"a publish needs {size / MIB:.0f} MiB of shared memory, and {SHARED} has "
                f"{shutil.disk_usage(SHARED).free / MIB:.0f} MiB free ({error.strerror}); enlarge it (docker run "
                "--shm-size), or set weight_sync.backend=gloo"
            ) from error
        return cls(name, file, size)

    @classmethod
    def attach(cls, name: str, *, timeout_s: float) -> Segment:
        """Waits for a segment that another process creates, and returns it.

        Raises:
            WeightSyncError: the segment did not appear within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                file = os.open(SHARED / name, os.O_RDWR)
            except FileNotFoundError:
                if time.monotonic() > deadline_s:
                    raise WeightSyncError(
                        f"the trainer's shared memory {SHARED / name} did not appear within "
                        f"weight_sync.timeout_s={timeout_s:g}: trainer and engines must be on one host and see one "
                        f"{SHARED}; set weight_sync.backend=gloo where they are not"
                    ) from None
            else:
                size = os.fstat(file).st_size
                if size > 0:  # else its creator has not set the size yet
                    return cls(name, file, size)
                os.close(file)
            time.sleep(POLL_S)

    def forget_name(self) -> None:
        """Removes the name; processes that have mapped the memory keep it."""
        self._path.unlink(missing_ok=True)


def _created(path: Path) -> int:
    """Returns the descriptor of a new file, locked; the mapping's own descriptor keeps the lock."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # else a cleaner removed it before it was locked
            return file
        os.close(file)
