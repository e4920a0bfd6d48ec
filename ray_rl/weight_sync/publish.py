"""The protocol of a publish: pause, receive, commit, verify, resume. Knows neither Ray nor the transport."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from ray_rl.concurrency import settle
from ray_rl.errors import RayRLError, WeightMismatch, WeightSyncError, WorkerLost
from ray_rl.metrics.metric import Metric
from ray_rl.weight_sync.proof import Digests
from ray_rl.weight_sync.senders.sender import Sent

ORIGIN = "actor"
"""Name of the trainer in messages."""


class Receiver(Protocol):
    """An engine, as the protocol sees it."""

    @property
    def name(self) -> str:
        """For messages."""

    async def begin_update(self) -> None:
        """Pauses generation and makes the model ready."""

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads everything."""

    async def prove(self, digests: Digests) -> None:
        """Compares what was received with the digests of what was sent."""

    async def commit(self, version: int) -> int:
        """Ends the update and returns the version that the engine reports."""

    async def resume(self) -> None:
        """Generates again."""


class Origin(Protocol):
    """The trainer, as the protocol sees it."""

    async def announce(self) -> dict[str, Any]:
        """What the engines are told of the parameters to come."""

    async def send_weights(self) -> Sent:
        """Sends everything."""


async def publish(origin: Origin, receivers: Sequence[Receiver], *, version: int, timeout_s: float) -> list[Metric]:
    """Brings the origin's weights to every receiver; on return all of them serve `version`.

    An engine resumes only after every engine has proved that it received every byte that was sent, has committed and
    has reported the version: none serves a step that others have not got.

    Raises:
        WorkerLost: a worker of the trainer died.
        WeightMismatch: an engine received something else than was sent.
        WeightSyncError: someone failed, was not done within `timeout_s`, or reports another version; says who, and at
            what. Engines that had not resumed stay paused.
    """
    deadline_s = asyncio.get_running_loop().time() + timeout_s

    async def all_of(doing: str, calls: Mapping[str, Coroutine[Any, Any, Any]]) -> dict[str, Any]:
        left_s = deadline_s - asyncio.get_running_loop().time()
        settled = await settle(calls, timeout_s=max(0.0, left_s))
        for error in settled.failures.values():
            if not isinstance(error, RayRLError):
                raise error
            if isinstance(error, WorkerLost):
                raise error
        if settled.failures:
            # All of them: an engine that dies breaks the sender's connection, which may be the first to complain.
            reasons = "; ".join(str(error) for error in settled.failures.values())
            mismatch = any(isinstance(error, WeightMismatch) for error in settled.failures.values())
            raise (WeightMismatch if mismatch else WeightSyncError)(f"publishing version {version}, {doing}: {reasons}")
        if settled.unfinished:
            raise WeightSyncError(
                f"publishing version {version}, {doing}: {', '.join(settled.unfinished)} did not finish within "
                f"weight_sync.timeout_s={timeout_s:g}; see the logs of the run"
            )
        return settled.results

    await all_of("pausing", {receiver.name: receiver.begin_update() for receiver in receivers})
    update_info = (await all_of("announcing", {ORIGIN: origin.announce()}))[ORIGIN]
    receiving = {receiver.name: receiver.receive_weights(update_info) for receiver in receivers}
    # bound: `all_of` waits for it with weight_sync.timeout_s
    sent: Sent = (await all_of("sending and receiving", {ORIGIN: origin.send_weights(), **receiving}))[ORIGIN]
    await all_of("proving", {receiver.name: receiver.prove(sent.digests) for receiver in receivers})
    _verify(version, await all_of("committing", {receiver.name: receiver.commit(version) for receiver in receivers}))
    await all_of("resuming", {receiver.name: receiver.resume() for receiver in receivers})
    return sent.metrics


def _verify(version: int, reported: Mapping[str, int]) -> None:
    wrong = [f"{name} reports {seen}" for name, seen in reported.items() if seen != version]
    if wrong:
        raise WeightSyncError(f"after publishing version {version}: {', '.join(wrong)}; no engine was resumed")
