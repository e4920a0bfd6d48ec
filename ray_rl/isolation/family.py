"""Kills a process and everything that it started, including processes with a session of their own."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

MARK = "RAY_RL_SANDBOX"
"""The environment variable by which descendants are found after their parent has ended."""

DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG: the option of Linux's prctl for the signal that a process gets when its parent dies."""
ROUNDS = 5
"""How often to look for descendants: a process may start another during the search."""


def kill_family(pid: int, mark: str) -> None:
    """Kills a process, its group, its descendants, and every process whose environment has the mark.

    Without /proc, only the process group is killed.

    Args:
        pid: the leader of its own session; it may have ended already.
        mark: value of `MARK` in the environment that the process was started with.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts nothing more
    family = _descendants(pid)
    with contextlib.suppress(ProcessLookupError):  # it is gone, and started nothing that is left
        os.killpg(pid, signal.SIGKILL)
    _kill(family - {pid})
    kill_marked(mark)


def kill_marked(mark: str) -> None:
    """Kills every process that was started with the mark in its environment; see `kill_family`."""
    for _ in range(ROUNDS):
        found = _marked(mark)
        if not found:
            return
        _kill(found)


def _kill(pids: set[int]) -> None:
    for each in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def _processes() -> list[Path]:
    root = Path("/proc")
    return [folder for folder in root.iterdir() if folder.name.isdigit()] if root.is_dir() else []


def _descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for folder in _processes():
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    generation = {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation} - found
        found |= generation
    return found


def _marked(mark: str) -> set[int]:
    wanted = f"{MARK}={mark}".encode()
    found: set[int] = set()
    for folder in _processes():
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found
