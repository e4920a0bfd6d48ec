"""The protocol of a publish: pause, receive, commit, verify, resume. Knows neither Ray nor the transport."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from ray_rl.errors import WeightSyncError
from ray_rl.metrics.metric import Metric
from ray_rl.rollout.together import together


class Receiver(Protocol):
    """An engine, as the protocol sees it."""

    @property
    def name(self) -> str:
        """For messages."""

    async def begin_update(self) -> None:
        """Pauses generation and makes the model ready."""

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads everything."""

    async def commit(self, version: int) -> int:
        """Ends the update and returns the version that the engine reports."""

    async def resume(self) -> None:
        """Generates again."""


class Origin(Protocol):
    """The trainer, as the protocol sees it."""

    async def announce(self) -> dict[str, Any]:
        """What the engines are told of the parameters to come."""

    async def send_weights(self) -> list[Metric]:
        """Sends everything."""


async def publish(origin: Origin, receivers: Sequence[Receiver], *, version: int, timeout_s: float) -> list[Metric]:
    """Brings the origin's weights to every receiver; on return all of them serve `version`.

    An engine resumes only after every engine has committed and reported the version: none serves a step that others
    have not got.

    Raises:
        WeightSyncError: not done within `timeout_s`, or an engine reports another version. The engines stay paused.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await together(receiver.begin_update() for receiver in receivers)
            update_info = await origin.announce()
            metrics, *_ = await together([origin.send_weights(), *(r.receive_weights(update_info) for r in receivers)])
            reported = await together(receiver.commit(version) for receiver in receivers)
            _verify(receivers, reported, version)
            await together(receiver.resume() for receiver in receivers)
    except TimeoutError as error:
        names = ", ".join(receiver.name for receiver in receivers)
        raise WeightSyncError(
            f"publishing version {version} to {names} took longer than weight_sync.timeout_s={timeout_s:g}"
        ) from error
    return list(metrics)


def _verify(receivers: Sequence[Receiver], reported: Sequence[int], version: int) -> None:
    wrong = [
        f"{receiver.name} reports {seen}" for receiver, seen in zip(receivers, reported, strict=True) if seen != version
    ]
    if wrong:
        raise WeightSyncError(f"after publishing version {version}: {', '.join(wrong)}; no engine was resumed")
