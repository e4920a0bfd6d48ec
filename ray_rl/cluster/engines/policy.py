"""Decides what to do about an engine that fails, by a pure function of the fault and the state of the engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

BACKOFFS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Pauses before each restart; the last one is repeated. A cause like a full disk often lasts for a while."""


@dataclass(frozen=True, slots=True)
class Died:
    """A process of the engine ended, or the engine reports that it cannot continue."""

    reason: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The engine has not answered a heartbeat."""

    seconds: float
    """Seconds of silence, except those in which the engine was receiving weights."""

    @property
    def reason(self) -> str:
        """The fault in messages."""
        return f"has not answered for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Two weight updates failed; the engine's weights are in an unknown state."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A restart failed."""

    reason: str


Fault = Died | Silent | Poisoned | NotStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of an engine and of the others, on which a decision depends in addition to the fault."""

    restarts: int
    """Restarts of this engine so far."""
    max_restarts: int
    others: int
    """Other engines that serve or are being restarted."""
    heartbeat_timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing yet: the engine may still answer."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Kill the processes of the engine and start it again."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Abandon:
    """Kill the processes of the engine; the others keep running."""


@dataclass(frozen=True, slots=True)
class EndRun:
    """End the run: no engine is left, and none will be restarted."""


Decision = Wait | Restart | Abandon | EndRun


def decide(fault: Fault, standing: Standing) -> Decision:
    """Decides what to do about a fault of an engine."""
    match fault:
        case Silent(seconds) if seconds <= standing.heartbeat_timeout_s:
            return Wait()
        case Died() | Silent() | Poisoned() | NotStarted():
            if standing.restarts < standing.max_restarts:
                return Restart(BACKOFFS_S[min(standing.restarts, len(BACKOFFS_S) - 1)])
            return Abandon() if standing.others else EndRun()
        case _:
            assert_never(fault)
