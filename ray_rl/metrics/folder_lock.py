"""Reserves a run folder for one process, with a kernel lock and a file that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

from ray_rl.errors import ConfigError, FolderHeld, RecordError
from ray_rl.metrics.modes import open_file
from ray_rl.metrics.whole_pieces import explained

LOCK = "lock"
GUARD = "lock.takeover"
Ending = Literal["stopped", "failed", "killed"]
"""stopped: the run ended by itself, or was asked to end. failed: an error ended it. killed: its process ended without a
chance to say why (SIGKILL, too little memory, a lost machine, or `run.grace_s` was over)."""
_TRIES = 5
"""Attempts to lock: another process can remove the file after we opened it, but hardly several times in a row."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Reserves a folder for this process during the block.

    The kernel releases the lock when the process ends, even if it is killed. Forked children can keep the lock open
    for longer: if the holder is known to be dead, the lock is taken over.

    Raises:
        FolderHeld: another live process holds the folder; the message names its pid and host.
        ConfigError: the file system has no locks, or the folder cannot be written to.
    """
    descriptor = _acquired(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Returns the content of a folder's lock file; None if no live process holds the folder. Changes nothing."""
    try:
        with (folder / LOCK).open("rb") as file:
            holder = _holder(file.fileno())
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return None if _is_dead(holder) else holder
    except OSError:
        return None
    return None


def mark_ending(folder: Path, ending: Ending) -> None:
    """Writes how the run ended into the lock file, which this process holds.

    A run writes `killed` when it starts, which remains if it cannot write another ending.
    """
    with suppress(OSError):  # the disk may be full, which may be why it failed
        (folder / LOCK).write_text(json.dumps(_myself() | {"ending": ending}), encoding="utf-8")


def ending_of(folder: Path) -> Ending:
    """Returns how the last run in a folder ended: `stopped` if nothing says so, as in folders of older releases."""
    try:
        with (folder / LOCK).open("rb") as file:
            ending = _holder(file.fileno()).get("ending")
    except OSError:
        return "stopped"
    endings: tuple[Ending, ...] = get_args(Ending)
    return next((each for each in endings if each == ending), "stopped")


def pid_space() -> str | None:
    """Returns an id of our pid namespace: one boot of one machine, and one container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _acquired(folder: Path) -> int:
    path = folder / LOCK
    for _ in range(_TRIES):
        descriptor = _opened(path)
        if not _is_locked_now(descriptor, path):
            holder = _holder(descriptor)
            os.close(descriptor)
            if not _is_dead(holder):
                raise _held(folder, holder)
            _remove_stale(folder)
        elif _is_at(path, descriptor):
            return _signed(descriptor, path)
        else:
            os.close(descriptor)
    raise FolderHeld(f"{path}: other processes keep replacing this file; start the run again")


def _signed(descriptor: int, path: Path) -> int:
    """Writes the holder into the lock file, which keeps its ending, and returns its descriptor."""
    kept = {name: value for name, value in _holder(descriptor).items() if name == "ending"}
    try:
        with explained(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself() | kept).encode(), 0)
    except RecordError:
        os.close(descriptor)
        raise
    return descriptor


def _opened(path: Path) -> int:
    try:
        return open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be opened for writing ({error.strerror}); check that you may write to the folder"
        ) from error


def _is_locked_now(descriptor: int, path: Path) -> bool:
    """Takes the lock if no other process has it, and returns whether it did."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"{path}: this file system cannot lock files ({error.strerror}); mount it with locks (Lustre: -o flock), "
            "or set run.dir to a folder on another file system"
        ) from error
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Returns whether an open file still has its name: taking over a lock, or removing the folder, removes the name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_stale(folder: Path) -> None:
    """Removes the lock file of a dead process, under a second lock, so that no other process removes a new file."""
    path, guard = folder / LOCK, _opened(folder / GUARD)
    try:
        if _is_locked_now(guard, path):
            descriptor = _opened(path)
            if not _is_locked_now(descriptor, path) and _is_dead(_holder(descriptor)):
                path.unlink()
            os.close(descriptor)
    finally:
        os.close(guard)


def _held(folder: Path, holder: dict[str, Any]) -> FolderHeld:
    who = f" (pid {holder['pid']} on {holder['host']})" if {"pid", "host"} <= holder.keys() else ""
    return FolderHeld(
        f"{folder}: another process{who} trains in this run folder; wait for its end or stop it first, "
        "then run this command again"
    )


def _holder(descriptor: int) -> dict[str, Any]:
    """Returns the content of the lock file; empty if it cannot be read."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "pids_of": pid_space(),
        "started": _start_ticks(os.getpid()),
    }


def _is_dead(holder: dict[str, Any]) -> bool:
    """Returns whether the holder has certainly ended. Only a pid of our own namespace can be looked up."""
    space = pid_space()
    if space is None or holder.get("pids_of") != space or not isinstance(holder.get("pid"), int):
        return False
    return _start_ticks(holder["pid"]) != holder.get("started")


def _start_ticks(pid: int) -> int | None:
    """Returns when a process started, in ticks since the boot; None if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
