"""What is done about an engine that fails: a pure function of what happened and of how things stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

BACKOFFS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each restart; the last before all further ones. What ends an engine at once, like a full disk, often lasts."""


@dataclass(frozen=True, slots=True)
class Died:
    """A process of the engine is gone, or it says itself that it cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Silent:
    """A heartbeat is unanswered."""

    seconds: float
    """Without those in which the engine was receiving weights."""

    @property
    def reason(self) -> str:
        """For messages."""
        return f"has not answered for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Poisoned:
    """New weights did not get into it, twice: what it holds is of no version."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A restart failed."""

    reason: str


Fault = Died | Silent | Poisoned | NotStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a decision depends on, beside the fault."""

    restarts: int
    """Of this engine so far."""
    max_restarts: int
    others: int
    """Other engines that serve or are being restarted."""
    heartbeat_timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing has failed yet."""


@dataclass(frozen=True, slots=True)
class Restart:
    """End what is left of it and start it again."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End what is left of it; the others go on."""


@dataclass(frozen=True, slots=True)
class EndRun:
    """No engine is left, and none will come back."""


Decision = Wait | Restart | GiveUp | EndRun


def decide(fault: Fault, standing: Standing) -> Decision:
    """What to do.

    Args:
        fault: what happened to an engine.
        standing: of this engine and the others.
    """
    match fault:
        case Silent(seconds) if seconds <= standing.heartbeat_timeout_s:
            return Wait()
        case Died() | Silent() | Poisoned() | NotStarted():
            if standing.restarts < standing.max_restarts:
                return Restart(BACKOFFS_S[min(standing.restarts, len(BACKOFFS_S) - 1)])
            return GiveUp() if standing.others else EndRun()
        case _:
            assert_never(fault)
