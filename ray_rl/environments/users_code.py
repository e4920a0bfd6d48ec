"""The border to the code of users: calls that may raise, exit, hang, or return anything."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ray_rl.errors import EnvironmentFailed, RayRLError

MOST_THREADS = 4096
"""The most concurrent calls of plain functions."""
SHOWN_CHARACTERS = 200


class UsersCode:
    """Calls functions and coroutine functions with a limit. A plain function gets a thread of its own."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="environment")
        self._late: set[asyncio.Future[Any]] = set()

    @property
    def stuck(self) -> int:
        """Calls that did not return within the limit, and have not ended since."""
        return len(self._late)

    async def call(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Returns what a function returns.

        Args:
            name: its name in errors.
            function: a function, or a coroutine function.
            args: its arguments.

        Raises:
            EnvironmentFailed: it raised, or did not return within the limit.
            RayRLError: it raised an error of ours.
        """
        running = asyncio.ensure_future(self._outcome(name, function, *args))
        done, _ = await asyncio.wait([running], timeout=self._timeout_s)
        if done:
            return running.result()  # bound: it is done
        self._late.add(running)
        running.add_done_callback(self._late.discard)
        if inspect.iscoroutinefunction(function):
            running.cancel()  # and not awaited: an environment may ignore it
        raise EnvironmentFailed(f"{name} did not return within {self._timeout_s:g} s")

    async def _outcome(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*args)
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._threads, partial(function, *args))
            return await found if isinstance(found, Awaitable) else found
        except RayRLError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:SHOWN_CHARACTERS]
            raise EnvironmentFailed(f"{name} raised {type(error).__name__}: {text}{_place(error)}") from error


def shown(value: Any) -> str:
    """Returns the type and the beginning of a value, which may be anything."""
    try:
        text = " ".join(repr(value).split())[:SHOWN_CHARACTERS]
    except Exception as error:
        text = f"without a repr: {type(error).__name__}"
    return f"{type(value).__name__} {text}"


def _place(error: BaseException) -> str:
    """Returns where an error was raised: " at file.py:12"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
