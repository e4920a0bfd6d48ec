"""The border to the code of users: calls that may raise, exit, hang, or return anything."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from ray_rl.errors import EnvironmentFailed, RayRLError

SHOWN_CHARACTERS = 200


class Caught:
    """A context that keeps any exception of its block.

    This is the boundary to code of users and to what a policy makes of it: `sys.exit` in a tool must not end the
    worker, with the episodes of others.
    """

    def __init__(self, passing: tuple[type[BaseException], ...] = ()) -> None:
        self.error: BaseException | None = None
        self._passing = passing

    def __enter__(self) -> Caught:
        return self

    # The rule against catching everything has this exception, as `ray_rl.isolation.child` does at its process boundary.
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        self.error = error
        return not isinstance(error, self._passing)


@dataclass(frozen=True, slots=True)
class Called:
    """The result of a call."""

    value: Any = None
    error: BaseException | None = None
    """What it raised; None if it returned."""


async def called(function: Callable[[], Any]) -> Called:
    """Calls a plain function in a thread of its own, or awaits a coroutine function, without a limit.

    A thread cannot be stopped: the caller who stops waiting leaves it alone, and it ends with its process.
    """
    if inspect.iscoroutinefunction(function):
        return await _awaited(function)
    found = await _in_thread(function)
    return await _awaited(lambda: found.value) if inspect.isawaitable(found.value) else found


async def _awaited(make: Callable[[], Awaitable[Any]]) -> Called:
    with Caught(passing=(asyncio.CancelledError, GeneratorExit)) as caught:  # the call itself is cancelled
        return Called(await make())
    return Called(error=caught.error)


async def _in_thread(function: Callable[[], Any]) -> Called:
    """Calls a function in a new thread. A pool of threads would be full of those that hang."""
    done: Future[Called] = Future()
    done.set_running_or_notify_cancel()
    context = contextvars.copy_context()
    threading.Thread(target=_call, args=(context, function, done), name="ray-rl-environment", daemon=True).start()
    return await asyncio.wrap_future(done)


def _call(context: contextvars.Context, function: Callable[[], Any], done: Future[Called]) -> None:
    value = None
    with Caught() as caught:
        value = context.run(function)
    done.set_result(Called(value, caught.error))


class UsersCode:
    """Calls functions and coroutine functions of environments with a limit, and counts those that outlive it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
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
        running = asyncio.ensure_future(called(partial(function, *args)))
        done, _ = await asyncio.wait([running], timeout=self._timeout_s)
        if not done:
            self._late.add(running)
            running.add_done_callback(self._late.discard)
            if inspect.iscoroutinefunction(function):
                running.cancel()  # and not awaited: an environment may ignore it
            raise EnvironmentFailed(f"{name} did not return within {self._timeout_s:g} s")
        if running.cancelled():
            raise EnvironmentFailed(f"{name} raised CancelledError")
        found = running.result()  # bound: it is done
        if isinstance(found.error, RayRLError):
            raise found.error
        if found.error is not None:
            traceback.print_exception(found.error)
            raise EnvironmentFailed(f"{name} raised {_told(found.error)}") from found.error
        return found.value


def shown(value: Any) -> str:
    """Returns the type and the beginning of a value, which may be anything."""
    text = "without a repr"
    with Caught():  # its __repr__ is code of the user, too
        text = " ".join(repr(value).split())[:SHOWN_CHARACTERS]
    return f"{type(value).__name__} {text}"


def _told(error: BaseException) -> str:
    """Returns class, text and place of an error: "KeyError: 'board' at file.py:12"."""
    text = ""
    with Caught():
        text = " ".join(str(error).split())[:SHOWN_CHARACTERS]
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {text}" + (f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else "")
