import asyncio

import pytest

from ray_rl.concurrency import settle, together


async def after(seconds, value):
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


async def test_results_keep_the_order_of_the_calls():
    assert await together([after(0.02, "slow"), after(0, "fast")]) == ["slow", "fast"]


async def test_the_first_failure_is_raised_at_once_and_the_others_are_cancelled():
    error = ValueError("first")
    cancelled = []

    async def slow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(ValueError) as raised:
        async with asyncio.timeout(5):
            await together([slow(), after(0.01, error)])
    await asyncio.sleep(0)
    assert raised.value is error
    assert cancelled == [True]


async def test_settling_returns_results_by_name():
    settled = await settle({"a": after(0.01, 1), "b": after(0, 2)}, timeout_s=5)
    assert settled.results == {"a": 1, "b": 2}
    assert settled.failures == {}
    assert settled.unfinished == []


async def test_settling_after_a_failure_waits_a_moment_for_the_failures_that_follow():
    first, second = ValueError("a connection closed"), ValueError("the cause")
    calls = {"a": after(0, first), "b": after(0.05, second), "c": after(60, "never"), "d": after(0, "fine")}
    settled = await settle(calls, timeout_s=30, grace_s=0.5)
    assert settled.failures == {"a": first, "b": second}
    assert settled.unfinished == ["c"]
    assert settled.results == {"d": "fine"}


async def test_settling_names_what_was_not_finished_in_time():
    settled = await settle({"a": after(60, 1), "b": after(0, 2), "c": after(60, 3)}, timeout_s=0.05)
    assert settled.unfinished == ["a", "c"]
    assert settled.results == {"b": 2}


async def test_settling_does_not_wait_longer_than_it_needs():
    async with asyncio.timeout(5):
        await settle({"a": after(0, ValueError("only one"))}, timeout_s=60, grace_s=60)


async def test_settling_ends_at_once_when_the_answers_are_no_longer_wanted():
    unwanted = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, unwanted.set)
    async with asyncio.timeout(5):
        settled = await settle({"a": after(60, 1), "b": after(0, 2)}, timeout_s=60, unless=unwanted)
    assert settled.unfinished == ["a"]
    assert settled.results == {"b": 2}
