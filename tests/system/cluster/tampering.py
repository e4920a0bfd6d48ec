"""Harm to weights on their way, done inside the process of a trainer's rank, behind the digests of what is sent."""

import sys
from typing import Any, Literal

from ray_rl.weight_sync.gloo_group import GlooGroup

Harm = Literal["flip", "drop"]
"""flip: one bit of the first bucket. drop: one bucket is announced, and what it had before is sent in it."""

BUCKET = 1
"""That is dropped."""
HIGH_BYTE, BIT = 3, 0x40
"""Of the first number, in its exponent: its size changes beyond recognition."""


class Tampering:
    """Stands between a rank's sender and its transport; what it does wrong, it does in the next `left` publishes."""

    def __init__(self, sender: Any) -> None:
        self.harm: Harm = "flip"
        self.left = 0
        self._sender = sender
        self._is_wrong = False
        self._told = self._filled = 0
        """Buckets of this publish."""
        self._before: Any = None
        """What the bucket had that is dropped, in the last publish that was right."""
        self._broadcast = GlooGroup.broadcast
        self._send = sender.send
        module = sys.modules[type(sender).__module__]
        self._unpack = module.unpack
        module.unpack = self.unpack  # type: ignore[attr-defined]
        sender.send = self.send
        GlooGroup.broadcast = lambda group, buffer: self.broadcast(group, buffer)  # type: ignore[method-assign]

    def send(self) -> Any:
        """One publish."""
        self._is_wrong, self.left = self.left > 0, max(0, self.left - 1)
        self._told = self._filled = 0
        return self._send()

    def unpack(self, buffer: Any, bucket: Any) -> Any:
        """Where parameters are written to; through shared memory, a dropped bucket never is."""
        number, self._filled = self._filled, self._filled + 1
        is_dropped = self._is_wrong and self.harm == "drop" and number == BUCKET and self._segment is not None
        return self._unpack(buffer.clone() if is_dropped else buffer, bucket)

    def broadcast(self, group: GlooGroup, buffer: Any) -> Any:
        """A bucket, or the word that it is complete."""
        number, self._told = self._told, self._told + 1
        if self._is_wrong and self.harm == "flip" and number == 0:
            (buffer if self._segment is None else self._segment.buffer)[HIGH_BYTE] ^= BIT
        if number == BUCKET and self._segment is None:
            if self._is_wrong and self.harm == "drop":
                buffer.copy_(self._before)
            elif not self._is_wrong:
                self._before = buffer.clone()
        return self._broadcast(group, buffer)

    @property
    def _segment(self) -> Any:
        """The shared memory, if that is the transport."""
        return vars(self._sender).get("_memory")


def install(policy: Any) -> None:
    """In the actor of a rank, once."""
    policy.tampering = Tampering(policy._sender)


def order(policy: Any, harm: Harm, publishes: int) -> None:
    """What is done to the next so many publishes."""
    policy.tampering.harm, policy.tampering.left = harm, publishes
