"""Waiting for several things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

GRACE_S = 5.0
"""How long to wait for further failures after the first. A worker that dies breaks its peers, and their errors may
arrive before the news of its death."""


async def together(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Returns the results in order. Raises the first failure unchanged and cancels the other calls."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))  # bound: callers pass calls that have limits
    finally:
        for task in tasks:
            task.cancel()


@dataclass(frozen=True, slots=True)
class Settled(Generic[Result]):
    """The outcome of several calls, by name, in the order in which they were given."""

    results: dict[str, Result]
    failures: dict[str, BaseException]
    unfinished: list[str]
    """Calls that had neither succeeded nor failed when the wait ended."""


async def settle(
    calls: Mapping[str, Awaitable[Result]],
    *,
    timeout_s: float,
    grace_s: float = GRACE_S,
    unless: asyncio.Event | None = None,
) -> Settled[Result]:
    """Waits until all are done, or one fails, or the time is up; the waits for unfinished ones are cancelled.

    Args:
        calls: at least one.
        timeout_s: the longest wait.
        grace_s: once one has failed, wait this long for the others, so that the cause is among the failures.
        unless: Ends the wait at once when it is set.
    """
    tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
    # bound: ends with this function, whose wait has a limit
    unwanted = None if unless is None else asyncio.ensure_future(unless.wait())
    if unwanted is not None:
        unwanted.add_done_callback(lambda _: [task.cancel() for task in tasks.values()])
    try:
        done, running = await asyncio.wait(tasks.values(), timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        if running and any(not task.cancelled() and task.exception() is not None for task in done):
            await asyncio.wait(running, timeout=min(grace_s, timeout_s))
    finally:
        unfinished = [name for name, task in tasks.items() if task.cancel() or task.cancelled()]
        if unwanted is not None:
            unwanted.cancel()
    ended = {name: task for name, task in tasks.items() if name not in unfinished}
    failures = {name: error for name, task in ended.items() if (error := task.exception()) is not None}
    results = {name: task.result() for name, task in ended.items() if name not in failures}
    return Settled(results, failures, unfinished)
