"""Tracks what a run is doing, for how long, and how the time of a step divides into phases."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ray_rl.config.roles import REFERENCE

START = "start"
"""The phase before the first step: engines load and get their first weights. Its time belongs to no step."""

EVALUATE = "evaluate"
"""The phase in which held-out examples are evaluated. No training happens in it, so it does not count as throughput."""

STOP_S = 5.0
"""How long the heartbeat may take to finish its line on a terminal that may be stopped."""

_DOING = {
    START: "starting",
    "rollout": "waiting for rollouts",
    "reward": "scoring completions",
    REFERENCE: "computing reference log-probabilities",
    "train": "training",
    "sync": "publishing weights",
    EVALUATE: "evaluating",
    "checkpoint": "saving a checkpoint",
    "restart": "starting lost workers again",
    "export": "writing the model",
}


@dataclass(frozen=True, slots=True)
class Span:
    """One interval in a phase, or outside of all phases with a note."""

    name: str
    start_s: float
    """The clock's value at the start."""
    detail: str = ""
    """Its progress: "12 of 64 completions"."""

    @property
    def doing(self) -> str:
        """The activity in words: "waiting for rollouts"."""
        return _DOING.get(self.name, self.name)


class Phases:
    """The open phases, and the seconds spent in each during this step. Other threads may read it."""

    def __init__(self, clock: Callable[[], float], *, ended: Callable[[Span, float], None]) -> None:
        """Makes a tracker without open phases.

        Args:
            clock: returns seconds, from any origin.
            ended: called with each span that ends and the time of its end.
        """
        self._clock = clock
        self._ended = ended
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._open: dict[int, Span] = {}
        self._outside: Span | None = None
        self._seconds: dict[str, float] = {}
        self._step_start_s: float | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the time of the block, even if it raises. The first phase after `start` begins the first step."""
        key = next(self._keys)
        with self._lock:
            now_s = self._clock()
            if self._step_start_s is None and name != START:
                self._step_start_s = now_s
            self._outside = None
            self._open[key] = Span(name, now_s)
        try:
            yield
        finally:
            with self._lock:
                span, end_s = self._open.pop(key), self._clock()
                self._seconds[name] = self._seconds.get(name, 0.0) + end_s - span.start_s
            self._ended(span, end_s)

    def note(self, text: str) -> bool:
        """Sets the detail of the phase opened last. Returns whether to print it: in `start`, or outside of phases."""
        with self._lock:
            if not self._open:
                self._outside = Span(text, self._clock())
                return True
            key = max(self._open)
            self._open[key] = replace(self._open[key], detail=text)
            return self._open[key].name == START

    def current(self) -> Span | None:
        """Returns the phase opened last; outside of all phases, the last note."""
        with self._lock:
            return self._open[max(self._open)] if self._open else self._outside

    @property
    def in_step(self) -> bool:
        """Whether the first step has begun."""
        with self._lock:
            return self._step_start_s is not None

    def end_step(self) -> tuple[float, dict[str, float]]:
        """Returns the seconds since the last step ended, and in each phase; starts the next step."""
        with self._lock:
            now_s = self._clock()
            step_s = 0.0 if self._step_start_s is None else now_s - self._step_start_s
            seconds = {name: value for name, value in self._seconds.items() if name != START}
            self._step_start_s, self._seconds, self._outside = now_s, {}, None
            return step_s, seconds


class Heartbeat:
    """A daemon thread that reports what the run waits for, even while the event loop is blocked."""

    def __init__(
        self,
        current: Callable[[], Span | None],
        say: Callable[[Span, float], None],
        *,
        every_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Makes a heartbeat; `start` starts its thread.

        Args:
            current: returns the current span.
            say: called with the span and its age in seconds, once for every further `every_s`.
            every_s: seconds between two reports.
            clock: the clock of the spans.
        """
        self._current = current
        self._say = say
        self._every_s = every_s
        self._clock = clock
        self._stop = threading.Event()
        self._watched: tuple[str, float] | None = None
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="ray_rl heartbeat", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def tick(self) -> None:
        """Checks once, and reports if a report is due."""
        span = self._current()
        if span is None:
            return
        if self._watched != (span.name, span.start_s):
            self._watched, self._beats = (span.name, span.start_s), 0
        age_s = self._clock() - span.start_s
        if age_s // self._every_s > self._beats:
            self._beats = int(age_s // self._every_s)
            self._say(span, age_s)

    def stop(self) -> None:
        """Ends the thread; nothing is reported afterwards."""
        self._stop.set()
        self._thread.join(timeout=STOP_S)

    def _run(self) -> None:
        while not self._stop.wait(min(1.0, self._every_s / 4)):
            self.tick()
