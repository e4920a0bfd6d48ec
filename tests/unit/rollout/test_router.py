import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.errors import ClusterError, EngineError
from ray_rl.metrics.metric import Last, Total
from ray_rl.rollout.router import Router

TOKENS = st.integers(min_value=1, max_value=10_000)


def test_requests_go_where_the_fewest_tokens_are_outstanding_and_ties_to_the_first():
    router = Router(3)
    with router.place(5) as a, router.place(3) as b, router.place(4) as c, router.place(1) as d, router.place(1) as e:
        assert [a, b, c, d, e] == [0, 1, 2, 1, 1]
        assert router.outstanding == (5, 5, 4)


def test_a_request_that_fails_is_no_longer_outstanding():
    router = Router(1)
    with pytest.raises(ValueError, match="broken"), router.place(7):
        raise ValueError("broken")
    assert router.outstanding == (0,)


@settings(deadline=None)
@given(engines=st.integers(1, 5), script=st.lists(st.one_of(TOKENS, st.integers(-20, -1)), max_size=60))
def test_every_request_goes_to_a_least_loaded_engine_and_no_load_is_ever_negative(engines, script):
    """A positive number places a request of that many tokens; a negative one ends one of those that run."""
    router = Router(engines)
    running = []
    loads = [0] * engines
    for action in script:
        if action > 0:
            place = router.place(action)
            engine = place.__enter__()
            assert loads[engine] == min(loads)
            loads[engine] += action
            running.append((place, engine, action))
        elif running:
            place, engine, tokens = running.pop(action % len(running))
            place.__exit__(None, None, None)
            loads[engine] -= tokens
        assert router.outstanding == tuple(loads)
        assert min(loads) >= 0
    for place, _, _ in running:
        place.__exit__(None, None, None)
    assert router.outstanding == (0,) * engines


async def test_an_engine_in_quarantine_gets_nothing_until_it_is_released():
    router = Router(3)
    router.quarantine(0)
    router.quarantine(0)
    with router.place(5) as a, router.place(3) as b, router.place(4) as c:
        assert [a, b, c] == [1, 2, 2]
    assert router.quarantined == (0,)
    router.release(0)
    with router.place(5) as a:
        assert a == 0
    assert router.quarantined == ()


async def test_with_none_left_a_request_waits_until_one_is_released():
    router = Router(2)
    router.quarantine(0)
    router.quarantine(1)
    waiting = asyncio.ensure_future(router.available(timeout_s=10))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    router.release(1)
    await waiting
    with router.place(1) as engine:
        assert engine == 1


async def test_the_wait_is_bounded_and_its_error_says_for_what_it_was():
    router = Router(2)
    router.quarantine(1)
    await router.available(timeout_s=0)
    router.quarantine(0)
    with pytest.raises(EngineError) as raised:
        await router.available(timeout_s=0.05)
    assert str(raised.value) == (
        "no engine serves: a request has waited rollout.timeout_s=0.05 s for a restart of rollout-0, rollout-1; "
        "see their logs"
    )


async def test_a_wait_that_no_engine_will_end_ends_with_the_reason():
    router = Router(1)
    router.quarantine(0)
    waiting = asyncio.ensure_future(router.available(timeout_s=10))
    await asyncio.sleep(0.01)
    error = ClusterError("no engine is left")
    router.close(error)
    router.close(ClusterError("another"))
    for late in (waiting, router.available(timeout_s=10)):
        with pytest.raises(ClusterError) as raised:
            await late
        assert raised.value is error


def test_metrics_count_the_engines_that_serve_and_those_that_came_back_since():
    router = Router(2)
    assert router.metrics() == [Last("engines/alive", 2), Total("engines/restarts", 0)]
    router.quarantine(1)
    assert router.metrics() == [Last("engines/alive", 1), Total("engines/restarts", 0)]
    router.release(1)
    router.release(1)
    assert router.metrics() == [Last("engines/alive", 2), Total("engines/restarts", 1)]
    assert router.metrics() == [Last("engines/alive", 2), Total("engines/restarts", 0)]
