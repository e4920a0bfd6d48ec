import asyncio
import functools
import sys
import threading
import time
from typing import Any

import pytest

from ray_rl.environments.tools.running import run_tool
from ray_rl.environments.tools.tool import ToolError


async def ran(function: Any, timeout_s: float = 5.0, **arguments: Any) -> Any:
    return await run_tool(function, arguments, timeout_s=timeout_s)


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("function", [lambda value: value, later, lambda value: later(value), functools.partial(later)])
async def test_plain_and_coroutine_functions_are_called(function: Any):
    assert (await ran(function, value=3)).value == 3


async def test_a_plain_function_does_not_block_the_loop():
    at_once = threading.Event()
    waiting = asyncio.ensure_future(ran(lambda: at_once.wait(5)))
    await asyncio.sleep(0.01)
    at_once.set()
    assert (await waiting).value is True


class Unprintable(Exception):
    def __str__(self) -> str:
        raise Unprintable


def raising(error: BaseException) -> None:
    raise error


async def raising_later(error: BaseException) -> None:
    raise error


ERRORS = [
    (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    (ValueError(), "ValueError"),
    (ToolError("the shop is closed"), "the shop is closed"),
    (SystemExit(3), "SystemExit: 3"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (Unprintable(), "Unprintable"),
    (ValueError("x" * 10_000_000), "ValueError: " + "x" * 500 + "..."),
    (ValueError("\ud800"), "ValueError: ?"),
]


@pytest.mark.parametrize(("error", "told"), ERRORS, ids=range(len(ERRORS)))
@pytest.mark.parametrize("function", [raising, raising_later])
async def test_whatever_a_tool_raises_is_its_answer(function: Any, error: BaseException, told: str):
    assert (await ran(function, error=error)).error == told


@pytest.mark.parametrize("function", [raising, raising_later])
async def test_a_cancellation_that_a_tool_raises_is_an_error_too(function: Any):
    assert (await ran(function, error=asyncio.CancelledError())).error == "CancelledError"


async def test_endless_recursion_is_an_error():
    def again() -> None:
        again()

    assert (await ran(again)).error.startswith("RecursionError")


async def test_sys_exit_in_a_tool_ends_nothing():
    assert (await ran(sys.exit)).error == "SystemExit"


async def hangs() -> None:
    await asyncio.sleep(60)


async def hangs_on() -> None:
    while True:
        try:
            await asyncio.sleep(0.1)
            return
        except asyncio.CancelledError:
            pass


@pytest.mark.parametrize("function", [hangs, hangs_on, lambda: time.sleep(0.15)])
async def test_a_tool_that_takes_too_long_is_an_error(function: Any):
    assert (await ran(function, timeout_s=0.05)).error == "it took longer than 0.05 s and was stopped"
    await asyncio.sleep(0.15)  # their ends, late, disturb nothing


async def test_the_conversion_of_a_result_may_fail_or_hang_too():
    failing = await run_tool(lambda: 1, {}, timeout_s=5, convert=lambda value: value / 0)
    assert failing.error == "ZeroDivisionError: division by zero"
    hanging = await run_tool(later, {"value": 1}, timeout_s=0.05, convert=lambda value: time.sleep(0.2))
    assert hanging.error == "it took longer than 0.05 s and was stopped"


async def test_a_call_can_be_cancelled_from_outside():
    ended = []

    async def tool() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    call = asyncio.ensure_future(ran(tool))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert ended == [True]
