"""Simulates how an engine decodes: short sequences end, and waiting ones take their place."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a decoding step: every running sequence gets a token."""

    fixed: Callable[[int], float]
    """Seconds apart from reading keys and values, by the number of running sequences."""
    context: float
    """Seconds for each token of the contexts of all running sequences."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """How long an engine takes."""

    seconds: float
    """Until the last sequence ends."""
    started: float
    """Until the last sequence has started; from then on, fewer and fewer run."""


def decode(lengths: Sequence[float], *, slots: int, prompt: float, pace: Pace) -> Sampled:
    """Returns the time of sequences that an engine decodes first come, first served.

    All sequences that run get their tokens at the same rate, so one mark per sequence says when it ends.

    Args:
        lengths: tokens of each sequence, in the order in which they wait.
        slots: the most sequences that run at the same time.
        prompt: tokens of the context before the first one is decoded.
        pace: seconds of a decoding step.
    """
    ends: list[tuple[float, float]] = []
    given, contexts, seconds, full = 0.0, 0.0, 0.0, 0.0
    waiting = iter(lengths)
    pending = len(lengths)
    while pending or ends:
        while pending and len(ends) < slots:
            length = next(waiting)
            heapq.heappush(ends, (given + length, length))
            contexts += prompt
            pending -= 1
        running = len(ends)
        end, length = heapq.heappop(ends)
        tokens, given = end - given, end
        seconds += tokens * pace.fixed(running) + pace.context * (contexts * tokens + running * tokens**2 / 2)
        contexts += running * tokens - (prompt + length)
        if pending:
            full = seconds
    return Sampled(seconds, full)
