"""Runs a tool for a limited time. Whatever it raises, returns or prints into its result is an answer to the policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_rl.environments.tools.tool import ToolError
from ray_rl.environments.tools.words import printable
from ray_rl.environments.users_code import Caught, called

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
    return task.result()


async def _run(function: Callable[[], Any], convert: Callable[[Any], Any] | None) -> Outcome:
    found = await called(function)
    if found.error is None and convert is not None:
        found = await called(partial(convert, found.value))
    return Outcome(found.value) if found.error is None else Outcome(error=_told(found.error))


def _told(error: BaseException) -> str:
    """Returns class and text of an exception, without its traceback: the policy shall not read our code."""
    name, text = type(error).__name__, ""
    with Caught():  # its __str__ is code of the tool, too
        text = str(error)
    text = printable(text if len(text) <= ERROR_CHARACTERS else f"{text[:ERROR_CHARACTERS]}...")
    if isinstance(error, ToolError):
        return text or "it failed"
    return f"{name}: {text}" if text else name
