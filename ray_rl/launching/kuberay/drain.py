"""`python -m ray_rl.launching.kuberay.drain driver|worker SECONDS` runs in a pod before Kubernetes ends Ray in it.

KubeRay suspends, retries and ends a job by deleting all of its pods together. Kubernetes then signals the first process
of each container, which is Ray and not the driver. So before that (preStop), the head's pod asks the driver to save and
waits until it ends, and the other pods stay as long as the head.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ray_rl.launching.kuberay.retries import RAY_JOB

POLL_S = 0.5
CONNECT_S = 2.0
TRIES = 3
"""The head has ended if it does not answer this many times in a row."""
GCS = "--gcs-address="
"""The argument of a raylet with the head's address."""
PROC = Path("/proc")


def main(words: list[str]) -> int:
    """Waits until the pod may end, at most SECONDS.

    Args:
        words: the role and the seconds.
    """
    role, seconds = words
    waits = {"driver": end_driver, "worker": outlast_head}
    waits[role](time.monotonic() + float(seconds))
    return 0


def end_driver(deadline_s: float) -> None:
    """Sends SIGTERM to every `ray-rl train` of this container, and waits until they end."""
    job = os.environ.get(RAY_JOB)
    pids = list(drivers(job))
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    _wait(lambda: not set(pids) & set(drivers(job)), deadline_s)


def drivers(job: str | None) -> Iterator[int]:
    """Yields the process ids of the drivers of a RayJob, or of no job, without the shells around them."""
    for pid, words in _processes(PROC):
        if "train" in words and any(Path(word).name == "ray-rl" for word in words[:2]) and _job_of(pid) == job:
            yield pid


def _job_of(pid: int) -> str | None:
    with suppress(OSError):
        for line in (PROC / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0"):
            if line.startswith(f"{RAY_JOB}="):
                return line.partition("=")[2]
    return None


def outlast_head(deadline_s: float, *, proc: Path = PROC) -> None:
    """Waits until the head of this container's raylet no longer listens."""
    address = head_address(proc)
    if address is None:
        return
    silent = 0

    def is_gone() -> bool:
        nonlocal silent
        silent = 0 if _answers(address) else silent + 1
        return silent >= TRIES

    _wait(is_gone, deadline_s)


def head_address(proc: Path) -> tuple[str, int] | None:
    """Returns the head's address from this container's raylet: not a host name, which disappears with the head."""
    for _, words in _processes(proc):
        for word in words:
            if word.startswith(GCS):
                host, _, port = word.removeprefix(GCS).rpartition(":")
                return host.strip("[]"), int(port)
    return None


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def _wait(condition: Callable[[], bool], deadline_s: float) -> None:
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _processes(proc: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields id and command line of the visible processes; processes that have just ended have an empty one."""
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):
            text = (folder / "cmdline").read_bytes().decode(errors="replace")
            yield int(folder.name), text.rstrip("\0").split("\0")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
