"""An asyncio event loop whose clock jumps to the next timer whenever nothing is ready."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: the time that was to pass has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is scheduled and nothing is ready: this waits for ever")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_in_virtual_time(main: Callable[[Callable[[], float]], Coroutine[Any, Any, Result]]) -> Result:
    """What `main` returns. It is given the clock, in seconds from 0, and `asyncio.sleep` takes no time of ours."""
    loop = _JumpingLoop()
    with contextlib.closing(loop):
        return loop.run_until_complete(main(loop.time))
