"""Waits for calls to workers: for all of them together, with a limit, and naming the one that failed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from ray_rl.concurrency import settle
from ray_rl.errors import ClusterError, EngineError, RayRLError, WorkerLost

Result = TypeVar("Result")

LOG_LINES = 15
"""Lines of a dead worker's log in the error."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Control sequences in Ray's messages."""

NODE = re.compile(r"^\s*ip: (\S+)", re.MULTILINE)
PROCESS = re.compile(r"^\s*pid: (\d+)", re.MULTILINE)
REASON = re.compile(r"Worker exit type: (\w+) Worker exit detail: (.*?)(?: Some common causes|\n|$)")
"""Finds why Ray believes that a worker died. Only the text of its error has the reason."""
MEMORY = re.compile(r"Memory on the node \(IP: ([^,\s]+).*? was (\S+) used / (\S+) limit")
USER = re.compile(r"^(\d+)\t([\d.]+)\t(.+)$", re.MULTILINE)
"""Id, GB and command of the processes that use most memory, the largest first."""
USERS = 4
"""Number of processes that a message names."""


class Loss:
    """Records that workers are lost. Every further call to them fails."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why the workers are lost, for messages; None while they can be called."""
        self.told = asyncio.Event()

    def tell(self, reason: str) -> None:
        """Writes the workers off. The first reason stays."""
        if self.reason is None:
            self.reason = reason
            self.told.set()


def name_of(method: Callable[..., Any]) -> str:
    """Returns the name of a call in messages: "send weights" for `send_weights`."""
    return method.__name__.strip("_").replace("_", " ")


async def answers(
    refs: Mapping[str, Awaitable[Result]],
    *,
    doing: str,
    timeout_s: float,
    logs: Path | None = None,
    loss: Loss | None = None,
) -> dict[str, Result]:
    """Waits for all running calls and returns their results by worker name.

    Of several failures, raises the likeliest cause: a worker's death, then an error of ours, then any other.

    Args:
        refs: Ray's reference of one running call of each worker, by name.
        doing: the name of the call in messages.
        timeout_s: the limit of the whole wait.
        logs: the folder with a log file of each worker, quoted when one dies.
        loss: ends the wait when the workers are written off.

    Raises:
        RayRLError: a worker raised it.
        WorkerLost: a worker died, which the message names, or the workers were written off.
        ClusterError: a worker did not finish in time, or raised any other error; the message names the worker.
    """
    settled = await settle(refs, timeout_s=timeout_s, unless=None if loss is None else loss.told)
    if loss is not None and loss.reason is not None and len(settled.results) < len(refs):
        raise WorkerLost(f"{doing}: {loss.reason}")  # later failures are its consequence
    if settled.failures:
        name, error = min(settled.failures.items(), key=lambda failure: _distance_from_cause(failure[1]))
        raise _explained(name, error, doing, logs) from error
    if settled.unfinished:
        names = ", ".join(settled.unfinished)
        raise ClusterError(f"{doing}: {names} did not finish within {timeout_s:g} s; see the logs of the run")
    return settled.results


def _distance_from_cause(error: BaseException) -> int:
    """Returns the rank of an error: the peers of a dead worker raise vague ones, such as a closed connection."""
    if isinstance(error, (RayActorError, OutOfMemoryError)):
        return 0
    return 1 if isinstance(error, RayTaskError) and isinstance(error.cause, RayRLError) else 2


def _explained(name: str, error: BaseException, doing: str, logs: Path | None) -> BaseException:
    """Returns the error to raise for a worker's failure."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RayRLError):
            # vLLM runs in processes of its own: only the log says why they ended.
            tail = _tail(name, logs) if isinstance(cause, EngineError) else ""
            return type(cause)(f"{name}: {cause}{tail}")
        return ClusterError(f"{doing}: {name} raised {type(cause).__name__}: {cause}{_tail(name, logs)}")
    if isinstance(error, RayActorError):
        text = COLOUR.sub("", str(error)).strip()
        if error.actor_init_failed:
            return WorkerLost(f"{doing}: {name} could not be started: {text}{_tail(name, logs)}")
        return WorkerLost(
            f"{doing}: {name} died {_circumstances(text)}. Usual causes: out of memory (see dmesg), a full /dev/shm or "
            f"disk.{_tail(name, logs)}"
        )
    if isinstance(error, OutOfMemoryError):
        return WorkerLost(f"{doing}: {name} was killed by Ray, {_memory(COLOUR.sub('', str(error)))}")
    if isinstance(error, RayError):
        return ClusterError(f"{doing}: {name} cannot be reached: {type(error).__name__}: {error}{_tail(name, logs)}")
    return error


def _memory(text: str) -> str:
    """Extracts the node whose memory ran out and the largest processes from Ray's page of text."""
    found, users = MEMORY.search(text), USER.findall(text)[:USERS]
    where = f"node {found[1]} had {found[2]} of {found[3]} in use" if found else " ".join(text.split())
    most = ", ".join(f"{command} {size} GB (process {process})" for process, size, command in users)
    return (
        f"as the memory of its node ran out: {where}{f', most of it {most}' if most else ''}. Lower "
        "train.micro_batch_tokens or rollout.kv_cache_gib (`ray-rl plan` shows the memory of each part), or end other "
        "processes there."
    )


def _circumstances(text: str) -> str:
    """Extracts node, process and reason from Ray's page of text: "on 10.0.0.7 (process 4711: SYSTEM_ERROR, ...)"."""
    node, process, reason = (pattern.search(text) for pattern in (NODE, PROCESS, REASON))
    where = f"on {node[1]} " if node else ""
    which = f"process {process[1]}: " if process else ""
    what = f"{reason[1]}, {reason[2]}" if reason else " ".join(text.split())
    return f"{where}({which}{what.rstrip('.')})"


def _tail(name: str, logs: Path | None) -> str:
    path = None if logs is None else logs / f"{name}.log"
    if path is None or not path.is_file():
        return ""
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([f"\nLast lines of {path}:", *lines])
