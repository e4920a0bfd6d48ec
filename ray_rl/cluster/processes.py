"""Records the processes of a worker while it works, and kills them by their ids when it does not."""

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
    """Identifies a process of a node, also against a later process with the same number."""

    pid: int
    created_s: float


@dataclass(frozen=True, slots=True)
class Family:
    """A worker's process and its descendants."""

    node: str
    """Ray's id of the node."""
    members: tuple[ProcessId, ...]
    """The processes; the first is the worker's own."""


async def own_family(_: object) -> Family:
    """Returns the family of the worker that runs this function."""
    return family_of(os.getpid(), node=ray.get_runtime_context().get_node_id())


def family_of(pid: int, *, node: str) -> Family:
    """Returns the process and its current descendants."""
    parent = psutil.Process(pid)
    members = [parent, *parent.children(recursive=True)]
    return Family(node, tuple(ProcessId(member.pid, member.create_time()) for member in members))


def end_all(members: Sequence[ProcessId], *, timeout_s: float) -> list[int]:
    """Kills processes of this node and their descendants, stopped ones too.

    Returns:
        The ids of processes that still run after `timeout_s`.
    """
    doomed = [process for member in members for process in _found(member)]
    for process in doomed:
        _kill(process)
    give_up_s = time.monotonic() + timeout_s
    while (left := [process.pid for process in doomed if _runs(process)]) and time.monotonic() < give_up_s:
        time.sleep(POLL_S)
    return left


def _found(member: ProcessId) -> list[psutil.Process]:
    """Returns the process and its descendants; none if its number now belongs to another process."""
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
        return  # it has already ended


def _runs(process: psutil.Process) -> bool:
    """Returns whether a process runs; a zombie has ended, even if its parent has not noticed."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
