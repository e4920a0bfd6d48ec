"""One line of a report on machines, and checks that are the same for one machine and for a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    detail: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty if there is nothing to do."""
    node: str = ""
    """The node of a cluster where it was found, or "A - B" for a link; empty for all nodes or this machine."""


def disk_room(name: str, free_gib: float, *, at: str, node: str = "") -> Finding:
    """Checks that a disk has room for the files of a run."""
    detail = f"{free_gib:.1f} GiB free at {at}"
    if free_gib < 1:
        return Finding(name, "fail", detail, "free at least 1 GiB: an export contains the whole model", node)
    if free_gib < 10:
        return Finding(name, "warn", detail, "free 10 GiB, or as much as the model's exports and logs need", node)
    return Finding(name, "ok", detail, node=node)


def shared_memory_room(free_gib: float, total_gib: float, *, node: str = "") -> Finding:
    """Checks that /dev/shm, where Ray keeps its objects and NCCL its buffers, has room."""
    detail = f"{free_gib:.1f} GiB free of {total_gib:.1f}"
    if free_gib < 2:
        remedy = "give the container more (docker run --shm-size=8g), or remove stale files in /dev/shm"
        return Finding("/dev/shm", "fail" if free_gib < 1 / 16 else "warn", detail, remedy, node)
    return Finding("/dev/shm", "ok", detail, node=node)


def no_shared_memory(*, node: str = "") -> Finding:
    """Returns the finding for a machine without /dev/shm."""
    remedy = "Ray falls back to slower files; run on Linux with /dev/shm mounted"
    return Finding("/dev/shm", "warn", "missing", remedy, node)
