"""The processes of a worker, known while it is well and ended by their ids when it is not."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import ray

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of a node, not to be taken for a later one of the same number."""

    pid: int
    created_s: float


@dataclass(frozen=True, slots=True)
class Family:
    """A worker's process and all that descend from it."""

    node: str
    """Ray's id of it."""
    members: tuple[ProcessId, ...]
    """The worker's own first."""


async def own_family(_: object) -> Family:
    """The family of the worker that this runs in."""
    return family_of(os.getpid(), node=ray.get_runtime_context().get_node_id())


def family_of(pid: int, *, node: str) -> Family:
    """The process and its descendants as they are now."""
    parent = psutil.Process(pid)
    members = [parent, *parent.children(recursive=True)]
    return Family(node, tuple(ProcessId(member.pid, member.create_time()) for member in members))


def end_all(members: Sequence[ProcessId], *, timeout_s: float) -> list[int]:
    """Kills processes of this node, stopped ones too, with all that descend from them.

    Returns:
        Pids of those that are still there after `timeout_s`.
    """
    doomed = [process for member in members for process in _found(member)]
    for process in doomed:
        _kill(process)
    give_up_s = time.monotonic() + timeout_s
    while (left := [process.pid for process in doomed if _runs(process)]) and time.monotonic() < give_up_s:
        time.sleep(POLL_S)
    return left


def _found(member: ProcessId) -> list[psutil.Process]:
    """The process, if it is still that one, and its descendants."""
    try:
        process = psutil.Process(member.pid)
        if process.create_time() != member.created_s:
            return []
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return  # it was quicker


def _runs(process: psutil.Process) -> bool:
    """A zombie has ended; it is for its parent to take note."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
