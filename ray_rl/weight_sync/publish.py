"""The protocol of a publish: pause, receive, commit, verify, resume. Independent of Ray and of the transport."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from ray_rl.concurrency import settle
from ray_rl.config.roles import ACTOR
from ray_rl.errors import RayRLError, WeightMismatch, WeightSyncError, WorkerLost
from ray_rl.metrics.metric import Metric
from ray_rl.weight_sync.messages import Digests, Sent

ORIGIN = ACTOR
"""The trainer's name in messages."""


class Receiver(Protocol):
    """The methods of an engine that the protocol needs."""

    @property
    def name(self) -> str:
        """The name in messages."""

    async def begin_update(self) -> None:
        """Pauses generation and prepares the model for new weights."""

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads all weights."""

    async def prove(self, digests: Digests) -> None:
        """Compares the received weights with the digests of the sender."""

    async def commit(self, version: int) -> int:
        """Ends the update and returns the version that the engine reports."""

    async def resume(self) -> None:
        """Resumes generation."""


class Origin(Protocol):
    """The methods of the trainer that the protocol needs."""

    async def announce(self) -> dict[str, Any]:
        """Returns the description of the parameters, which engines get before the weights."""

    async def send_weights(self) -> Sent:
        """Sends all weights."""


async def publish(origin: Origin, receivers: Sequence[Receiver], *, version: int, timeout_s: float) -> list[Metric]:
    """Sends the origin's weights to every receiver; on return all of them serve `version`.

    An engine resumes only after every engine has proved that it received every byte, has committed, and has reported
    the version: no engine serves a version that another does not have.

    Raises:
        WorkerLost: a worker of the trainer died.
        WeightMismatch: an engine received other bytes than were sent.
        WeightSyncError: a participant failed, did not finish within `timeout_s`, or reports another version; the
            message says who, and in which phase. Engines that had not resumed stay paused.
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
            # Report all failures: an engine that dies breaks the sender's connection, and the sender may fail first.
            reasons = "; ".join(str(error) for error in settled.failures.values())
            mismatch = any(isinstance(error, WeightMismatch) for error in settled.failures.values())
            raise (WeightMismatch if mismatch else WeightSyncError)(
                f"publishing version {version} failed while {doing}: {reasons}"
            )
        if settled.unfinished:
            raise WeightSyncError(
                f"publishing version {version} failed while {doing}: {', '.join(settled.unfinished)} did not finish "
                f"within weight_sync.timeout_s={timeout_s:g}; see the logs of the run"
            )
        return settled.results

    await all_of("pausing", {receiver.name: receiver.begin_update() for receiver in receivers})
    update_info = (await all_of("announcing", {ORIGIN: origin.announce()}))[ORIGIN]
    receiving = {receiver.name: receiver.receive_weights(update_info) for receiver in receivers}
    # bound: `all_of` waits for it with weight_sync.timeout_s
    sent: Sent = (await all_of("sending and receiving", {ORIGIN: origin.send_weights(), **receiving}))[ORIGIN]
    await all_of("verifying the weights", {receiver.name: receiver.prove(sent.digests) for receiver in receivers})
    _verify(version, await all_of("committing", {receiver.name: receiver.commit(version) for receiver in receivers}))
    await all_of("resuming", {receiver.name: receiver.resume() for receiver in receivers})
    return sent.metrics


def _verify(version: int, reported: Mapping[str, int]) -> None:
    wrong = [f"{name} reports {seen}" for name, seen in reported.items() if seen != version]
    if wrong:
        raise WeightSyncError(f"after publishing version {version}: {', '.join(wrong)}; no engine was resumed")
