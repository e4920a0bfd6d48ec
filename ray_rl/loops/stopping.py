"""Handles signals: one saves and ends the run, a second Ctrl-C ends it immediately."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from ray_rl.exit_codes import CHECKPOINTED

Result = TypeVar("Result")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TEARDOWN_S = 30.0
"""Part of the grace for workers to end after the last checkpoint; half of the grace where that is shorter."""
CANCEL_S = 5.0
"""Limit for a cancelled call to end."""


class StopAsked(Exception):
    """Someone asked the run to stop while no step was half done."""


class Stop:
    """Handles requests to stop the run.

    Before the first step there is nothing to save, and the task is cancelled at once. Later the step is finished, or
    cancelled while it waits for rollouts. `TEARDOWN_S` before the grace is over the task is cancelled, and when the
    grace is over the process ends, whatever it does.
    """

    def __init__(self, *, grace_s: float) -> None:
        """Makes a handler; `listen` installs it. The process ends `grace_s` after a signal."""
        self._grace_s = grace_s
        self._asked = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._note: Callable[[str], None] | None = None
        self._grace_runs = False
        self._awaits = False
        """Whether a call is in flight that a request cancels."""
        self.signal: signal.Signals | None = None
        """The first signal that arrived."""
        self.is_immediate = False
        """Whether a second request came, by Ctrl-C."""

    @property
    def is_asked(self) -> bool:
        """Whether the run is asked to stop."""
        return self._asked.is_set()

    @property
    def name(self) -> str:
        """The name of the signal that asked the run to stop."""
        return "a request" if self.signal is None else self.signal.name

    def listen(self) -> None:
        """Installs the signal handlers for the current task. Call it again after ray.init(), which installs its own."""
        self._task = asyncio.current_task()
        for each in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(each, self._ask, each)
            # asyncio learns of signals through a pipe; this handler starts the grace even if the loop is blocked.
            signal.signal(each, self._start_grace)

    @contextmanager
    def others_listen(self) -> Iterator[None]:
        """Treats the `sys.exit` of Ray's own SIGTERM handler in the block as a request to stop, and listens after it.

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
        """Lets a signal finish the current step and save, instead of cancelling the task; tells `note` about it."""
        self._note = note

    async def unless_asked(self, call: Coroutine[Any, Any, Result]) -> Result:
        """Returns the result of a call, and cancels the call when somebody asks the run to stop.

        Raises:
            StopAsked: a signal came before the result; the call was cancelled, or never started.
        """
        if self._asked.is_set():
            call.close()
            raise StopAsked
        self._awaits = True
        working = asyncio.ensure_future(call)
        asked = asyncio.ensure_future(self._asked.wait())  # bound: cancelled when the wait below ends
        try:
            # bound: a batch of rollouts has limits of its own
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise StopAsked
            return working.result()
        finally:
            self._awaits = False
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
        what = "cancelling the step, which still waits for rollouts," if self._awaits else "finishing the step"
        self._note(
            f"{number.name}: {what} and saving, within run.grace_s={self._grace_s:g}"
            + ("; Ctrl-C again ends now" if number == signal.SIGINT else "")
        )
        reserve_s = min(TEARDOWN_S, self._grace_s / 2)
        asyncio.get_running_loop().call_later(self._grace_s - reserve_s, self._task.cancel)
