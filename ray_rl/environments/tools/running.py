"""Runs a tool for a limited time. Whatever it raises, returns or prints into its result is an answer to the policy."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from ray_rl.environments.tools.tool import ToolError
from ray_rl.environments.tools.words import printable

ERROR_CHARACTERS = 500
"""The most that the policy reads of an exception's text."""


@dataclass(slots=True)
class Outcome:
    """What a call of a tool led to."""

    value: Any = None
    error: str | None = None
    """What went wrong, for the policy; None if the tool returned."""


async def run_tool(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    timeout_s: float,
    convert: Callable[[Any], Any] | None = None,
) -> Outcome:
    """Calls a tool, and returns what it returned, or why it did not.

    A plain function runs in a thread of its own, which cannot be stopped: after the limit it is left alone, and ends
    with its process. A coroutine is cancelled.

    Args:
        function: a plain or a coroutine function.
        arguments: its arguments by name.
        timeout_s: the limit for the call with its conversion.
        convert: called with what the tool returned, in a thread; its errors are those of the tool.
    """
    task = asyncio.ensure_future(_run(partial(function, **arguments), convert))
    try:
        done, _ = await asyncio.wait([task], timeout=timeout_s)
    finally:
        task.cancel()
    if not done:
        return Outcome(error=f"it took longer than {round(timeout_s, 2):g} s and was stopped")
    if task.cancelled():
        return Outcome(error="CancelledError")
    return task.result()  # bound: it is done


async def _run(function: partial[Any], convert: Callable[[Any], Any] | None) -> Outcome:
    if inspect.iscoroutinefunction(function.func):
        outcome = await _awaited(function())
    else:
        outcome = await _in_thread(function)
        if outcome.error is None and inspect.isawaitable(outcome.value):
            outcome = await _awaited(outcome.value)
    if outcome.error is not None or convert is None:
        return outcome
    return await _in_thread(partial(convert, outcome.value))


async def _awaited(value: Any) -> Outcome:
    with Caught(passing=(asyncio.CancelledError, GeneratorExit)) as caught:  # the call itself is cancelled
        return Outcome(await value)
    return caught.outcome()


async def _in_thread(function: Callable[[], Any]) -> Outcome:
    """Calls a function in a new thread. A pool of threads would be full of those that hang."""
    done: Future[Outcome] = Future()
    done.set_running_or_notify_cancel()
    context = contextvars.copy_context()
    threading.Thread(target=_call, args=(context, function, done), name="ray-rl-tool", daemon=True).start()
    return await asyncio.wrap_future(done)


def _call(context: contextvars.Context, function: Callable[[], Any], done: Future[Outcome]) -> None:
    outcome = None
    with Caught() as caught:
        outcome = Outcome(context.run(function))
    done.set_result(outcome or caught.outcome())


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

    def outcome(self) -> Outcome:
        """Returns the outcome of a call that raised."""
        assert self.error is not None, "the block raised"
        return Outcome(error=_told(self.error))


def _told(error: BaseException) -> str:
    """Returns class and text of an exception, without its traceback: the policy shall not read our code."""
    name, text = type(error).__name__, ""
    with Caught():  # its __str__ is code of the tool, too
        text = str(error)
    text = printable(text if len(text) <= ERROR_CHARACTERS else f"{text[:ERROR_CHARACTERS]}...")
    if isinstance(error, ToolError):
        return text or "it failed"
    return f"{name}: {text}" if text else name
