"""Requests to stop, by signal: once to save and end, Ctrl-C twice to end at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TEARDOWN_S = 30.0
"""Of the grace, or half of it where it is shorter: for workers to end after the last checkpoint."""
CANCEL_S = 5.0
"""Bound for what was given up to end."""
CHECKPOINTED = 75
"""Exit code: saved, run me again (EX_TEMPFAIL of sysexits.h)."""


class StopAsked(Exception):
    """Someone wants the run to end; nothing is left half done."""


class Stop:
    """Whether the run was asked to stop, and what to do about it.

    Before the first step there is nothing to save, and the task is cancelled at once. Later the step is finished, or
    given up while it waits for rollouts; `TEARDOWN_S` before the grace is over the task is cancelled, and when it is
    over the process ends, whatever it does.
    """

    def __init__(self, *, grace_s: float) -> None:
        """Listens to nothing yet.

        Args:
            grace_s: from the signal to the end of the process.
        """
        self._grace_s = grace_s
        self._asked = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._note: Callable[[str], None] | None = None
        self._grace_runs = False
        self.signal: signal.Signals | None = None
        """The first one that came."""
        self.is_immediate = False
        """Asked a second time by Ctrl-C."""

    @property
    def name(self) -> str:
        """What asked for the end."""
        return "a request" if self.signal is None else self.signal.name

    def listen(self) -> None:
        """Takes the signals for the task that calls; anew after whoever else sets handlers, as Ray does."""
        self._task = asyncio.current_task()
        for each in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(each, self._ask, each)
            # The loop hears of it through a pipe of its own; the grace passes also while something blocks the loop.
            signal.signal(each, self._start_grace)

    @contextmanager
    def others_listen(self) -> Iterator[None]:
        """A block in which `ray.init` takes SIGTERM for itself: its `sys.exit` is the request to stop.

        Raises:
            CancelledError: SIGTERM came within the block.
        """
        try:
            yield
        except SystemExit as error:
            if error.code != signal.SIGTERM:
                raise
            self.signal = self.signal or signal.SIGTERM
            raise asyncio.CancelledError from None
        self.listen()

    def finish_steps(self, note: Callable[[str], None]) -> None:
        """From now on there is something to save.

        Args:
            note: told of a signal.
        """
        self._note = note

    async def unless_asked(self, call: Coroutine[Any, Any, Result]) -> Result:
        """The result of a call that may be given up.

        Raises:
            StopAsked: a signal came before the result; the call was cancelled, or not even begun.
        """
        if self._asked.is_set():
            call.close()
            raise StopAsked
        working = asyncio.ensure_future(call)
        asked = asyncio.ensure_future(self._asked.wait())  # bound: cancelled when the wait below ends
        try:
            # bound: a batch of rollouts has limits of its own
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise StopAsked
            return working.result()
        finally:
            asked.cancel()
            working.cancel()
            await asyncio.wait({asked, working}, timeout=CANCEL_S)

    def _start_grace(self, number: int, frame: FrameType | None) -> None:
        if not self._grace_runs:
            self._grace_runs = True
            last = threading.Timer(self._grace_s, os._exit, (CHECKPOINTED,))
            last.daemon = True
            last.start()

    def _ask(self, number: signal.Signals) -> None:
        assert self._task is not None, "listen comes first"
        if self.signal is not None:
            if number == signal.SIGINT:
                self.is_immediate = True
                self._task.cancel()
            return
        self.signal = number
        self._asked.set()
        if self._note is None:
            self._task.cancel()
            return
        self._note(
            f"{number.name}: finishing the step and saving, within run.grace_s={self._grace_s:g}"
            + ("; Ctrl-C again ends now" if number == signal.SIGINT else "")
        )
        reserve_s = min(TEARDOWN_S, self._grace_s / 2)
        asyncio.get_running_loop().call_later(self._grace_s - reserve_s, self._task.cancel)
