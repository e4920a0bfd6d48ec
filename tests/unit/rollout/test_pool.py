"""Requests to scripted engines of one model."""

import asyncio

import pytest

from ray_rl.errors import EngineLost
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.request import SampleRequest, Sampling
from ray_rl.rollout.router import Router


class Engine:
    """Writes down what it is asked, and answers with the request's id until it is lost."""

    def __init__(self):
        self.asked = []
        self.is_lost = False

    async def generate(self, request):
        self.asked.append(request.id)
        if self.is_lost:
            raise EngineLost("rollout died")
        return [request.id]


def request(name, tokens=1):
    return SampleRequest(name, tuple(range(tokens)), 1, Sampling(max_tokens=4, seed=0))


@pytest.fixture
def engines():
    return [Engine(), Engine()]


async def test_the_turns_of_an_episode_go_to_the_engine_that_has_their_prefix_while_it_serves(engines):
    router = Router(2)
    pool = EnginePool(engines, timeout_s=1, router=router)
    with router.place(1000):  # engine 0 has more to do than any request costs
        await pool.generate(request("a/0"), sticky="a")
    await pool.generate(request("a/1"), sticky="a")
    await pool.generate(request("b/0"), sticky="b")
    assert [engine.asked for engine in engines] == [["b/0"], ["a/0", "a/1"]]
    engines[1].is_lost = True
    assert await pool.generate(request("a/2"), sticky="a") == ["a/2"]
    engines[1].is_lost = False
    router.release(1)
    await pool.generate(request("a/3"), sticky="a")
    assert engines[0].asked == ["b/0", "a/2", "a/3"], "the cache is now with the engine that took over"


async def test_only_so_many_keys_are_remembered(engines, monkeypatch):
    monkeypatch.setattr("ray_rl.rollout.pool.MOST_KEYS", 2)
    router = Router(2)
    pool = EnginePool(engines, timeout_s=1, router=router)
    with router.place(1000):
        for key in ("a", "b", "c"):
            await pool.generate(request(key), sticky=key)
    for key in ("b", "c", "a"):
        await pool.generate(request(f"{key} again"), sticky=key)
    assert [engine.asked for engine in engines] == [["a again"], ["a", "b", "c", "b again", "c again"]]


async def test_a_request_costs_its_prompt_and_all_completions_at_full_length(engines):
    router, seen = Router(2), []

    async def look(asked):
        seen.append(router.outstanding)
        return []

    engines[0].generate = look
    three = SampleRequest("a", (1, 2), 3, Sampling(max_tokens=10, seed=0))
    async with asyncio.timeout(1):
        await EnginePool(engines, timeout_s=1, router=router).generate(three)
    assert seen == [(32, 0)]
