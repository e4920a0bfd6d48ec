"""Whether the workers of a role can be counted on while nobody calls them."""

from __future__ import annotations

import asyncio

SUSPECT_S = 10.0
"""A worker that leaves a heartbeat unanswered for this long is the likely cause of what its peers complain about."""


class Vitals:
    """State of the workers of one role: loaded or not, silent since when, written off or not.

    `Trainers` loads the workers, `Heartbeats` asks them for signs of life, and every call to them ends when they are
    written off.
    """

    def __init__(self) -> None:
        """Starts without loaded workers."""
        self.is_loaded = False
        """Whether every worker has its model; only then do heartbeats count."""
        self.unanswered_s: dict[str, float] = {}
        """Seconds since the heartbeat that a worker has not answered yet, by name."""
        self.reason: str | None = None
        """Why the workers are written off; None while they are not."""
        self._lost = asyncio.Event()

    def loaded(self) -> None:
        """Starts counting on the workers, which are new."""
        self.is_loaded, self.reason, self.unanswered_s = True, None, {}
        self._lost.clear()

    def unload(self) -> None:
        """Stops counting on the workers: they must be started again before the next call."""
        self.is_loaded = False

    def lose(self, reason: str) -> None:
        """Writes the workers off, which ends every call to them. The first reason stays."""
        if self.reason is None:
            self.reason, self.is_loaded = reason, False
            self._lost.set()

    async def wait_lost(self) -> None:
        """Returns when the workers are written off; the caller bounds the wait."""
        await self._lost.wait()  # bound: runs together with a call that has a limit and cancels this

    def suspects(self) -> str | None:
        """Who has not answered for at least `SUSPECT_S`, and for how long; None if everybody answers."""
        silent = {name: seconds for name, seconds in self.unanswered_s.items() if seconds >= SUSPECT_S}
        return described(silent) if silent else None


def silence_of(wait_s: float, *, every_s: float) -> float:
    """Seconds of a wait that count as silence of whoever was waited for.

    What stops the driver, too, is not the workers' silence: a suspended machine, Ctrl-Z.

    Args:
        wait_s: How long the wait took.
        every_s: How long it should have taken.
    """
    return min(wait_s, 2 * every_s)


def described(silent: dict[str, float]) -> str:
    """The workers of one role that do not answer: "actor-1 has not answered for 12.0 s"."""
    verb = "has" if len(silent) == 1 else "have"
    return f"{', '.join(silent)} {verb} not answered for {max(silent.values()):.1f} s"
