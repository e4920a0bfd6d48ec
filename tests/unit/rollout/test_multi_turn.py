"""Episodes of several turns, over a scripted engine and a scripted environment."""

import asyncio

import numpy as np
import pytest

from ray_rl.environments.host import Answer
from ray_rl.errors import EnvironmentFailed
from ray_rl.metrics.episode_metrics import episode_metrics
from ray_rl.metrics.metric import reduce_metrics
from ray_rl.rollout.multi_turn import BEGINNINGS, MOST_FAILURES, TOLD_FAILURES, Failures, Limits, MultiTurn
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.request import Sampling
from ray_rl.types import Message, Prompt, ToolCall
from tests.make import completion

PROMPT = Prompt("p/0", (1, 2, 3), "question", messages=(Message("user", "question"),))
END = 9


class Engine:
    """Samples three tokens and the end, or as many as it may; remembers its requests."""

    def __init__(self, seconds=0.0):
        self.requests, self.seconds = [], seconds

    async def generate(self, request):
        self.requests.append(request)
        await asyncio.sleep(self.seconds)
        count = min(4, request.sampling.max_tokens)
        tokens = [*range(100, 100 + count - 1), END] if count == 4 else list(range(100, 100 + count))
        return [completion(tokens, "said", finish_reason="stop" if count == 4 else "length")]


class Scripted:
    """Answers turn after turn from a list; an exception in it is raised."""

    def __init__(self, *answers, beginnings=()):
        self.answers, self.beginnings = answers, list(beginnings)
        self.turn, self.rooms, self.seeds, self.ended = {}, [], [], []

    async def begin(self, episode, prompt, *, seed):
        self.seeds.append(seed)
        self.turn[episode] = 0
        given = self.beginnings.pop(0) if self.beginnings else prompt
        if isinstance(given, Exception):
            raise given
        return given

    async def step(self, episode, completion, *, room):
        self.rooms.append(room)
        answer = self.answers[self.turn[episode] % len(self.answers)]
        self.turn[episode] += 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self, episode):
        self.ended.append(episode)


def say(*tokens, reward=None, calls=0, **metrics):
    messages = (Message("user", "go on"),)
    return Answer(tokens, messages, reward, tool_calls=(ToolCall("add", {}),) * calls, metrics=metrics)


def episodes(environments, *, tells=None, prompt_tokens=8, tokens=64, turns=8, tool_calls=None, seconds=60.0):
    engine = Engine()
    limits = Limits(prompt_tokens=prompt_tokens, tokens=tokens, turns=turns, tool_calls=tool_calls, seconds=seconds)
    sampling = Sampling(max_tokens=8, seed=5)
    failures = Failures((tells if tells is not None else []).append)
    return engine, MultiTurn(EnginePool([engine], timeout_s=5.0), sampling, environments, limits, failures)


def sample(multi, *, samples=1, prompt=PROMPT, **place):
    return asyncio.run(multi.sample(prompt, samples=samples, **{"step": 1, "index": 2, **place}))


DONE = Answer(reward=1.0, done=True, metrics={"right": 1.0})


def test_what_was_sampled_is_the_prompt_of_the_next_turn_and_observations_lie_between():
    environments = Scripted(say(50, 51, reward=0.25), say(60), DONE)
    engine, multi = episodes(environments)
    (rollout,) = sample(multi).rollouts
    said = (100, 101, 102, END)
    assert [request.token_ids for request in engine.requests] == [
        PROMPT.token_ids,
        (*PROMPT.token_ids, *said, 50, 51),
        (*PROMPT.token_ids, *said, 50, 51, *said, 60),
    ]
    assert [turn.observation for turn in rollout.turns] == [(), (50, 51), (60,)]
    assert rollout.token_ids.tolist() == [*said, 50, 51, *said, 60, *said]
    assert rollout.is_sampled.tolist() == [True] * 4 + [False] * 2 + [True] * 4 + [False] + [True] * 4
    assert [turn.reward for turn in rollout.turns] == [0.25, None, 1.0]
    assert (rollout.stop, rollout.reward, rollout.total_reward) == ("stop", None, 1.25)
    assert [turn.messages for turn in rollout.turns] == [(), *[(Message("user", "go on"),)] * 2]


def test_every_turn_of_every_episode_has_a_seed_of_its_own_that_depends_on_its_place_alone():
    def seeds():
        engine, multi = episodes(Scripted(say(50), say(50), DONE))
        sample(multi, samples=3)
        return sorted(request.sampling.seed for request in engine.requests)

    assert seeds() == seeds()
    assert len(set(seeds())) == 9


def test_an_episode_stays_on_the_engine_that_has_its_earlier_turns_in_its_cache():
    _, multi = episodes(Scripted(say(50), say(50), DONE))
    engines = [Engine(0.005), Engine(0.01)]
    both = MultiTurn(
        EnginePool(engines, timeout_s=5.0), multi.sampling, multi.environments, multi.limits, multi.failures
    )
    sample(both, samples=4)
    of_engine = [{request.id.rpartition("/")[0] for request in engine.requests} for engine in engines]
    assert [len(each) for each in of_engine] == [2, 2]
    assert not of_engine[0] & of_engine[1]


def test_the_episodes_of_a_group_begin_with_one_seed_and_one_prompt():
    environments = Scripted(DONE)
    _, multi = episodes(environments)
    group = sample(multi, samples=4)
    assert len(set(environments.seeds)) == 1
    assert len(group.rollouts) == 4
    assert group.prompt is PROMPT
    other = Prompt("p/0", (1, 2, 4), "another")
    _, multi = episodes(Scripted(DONE, beginnings=[PROMPT, other]))
    with pytest.raises(EnvironmentFailed, match="one group differently"):
        sample(multi, samples=2)


def test_the_prompt_may_be_longer_with_the_first_messages_up_to_its_limit():
    longer = Prompt("p/0", tuple(range(8)), "and the board")
    _, multi = episodes(Scripted(DONE, beginnings=[longer]))
    assert sample(multi).prompt is longer
    _, multi = episodes(Scripted(DONE, beginnings=[longer]), prompt_tokens=7)
    with pytest.raises(EnvironmentFailed, match=r"8 tokens .* data.max_prompt_tokens=7"):
        sample(multi)


@pytest.mark.parametrize(
    ("limits", "answer", "stop", "turns"),
    [
        ({"turns": 3}, say(50), "turns", 3),
        ({"tool_calls": 4}, say(50, calls=2), "tool", 2),
        ({"seconds": 0.0}, say(50), "time", 1),
        ({"tokens": 10}, say(50), "length", 2),
        ({}, Answer(is_too_long=True), "length", 1),
    ],
)
def test_every_limit_ends_an_episode_with_its_own_reason(limits, answer, stop, turns):
    _, multi = episodes(Scripted(answer), **limits)
    (rollout,) = sample(multi).rollouts
    assert (rollout.stop, len(rollout.turns)) == (stop, turns)


def test_a_turn_gets_no_more_tokens_than_the_episode_has_left():
    environments = Scripted(say(50, 51))
    engine, multi = episodes(environments, tokens=14)
    (rollout,) = sample(multi).rollouts
    assert [request.sampling.max_tokens for request in engine.requests] == [8, 8, 2]
    assert environments.rooms == [10, 4, 0]
    assert rollout.stop == "length"
    assert len(rollout.token_ids) == 14


def test_an_answer_that_leaves_no_room_for_a_turn_ends_the_episode():
    _, multi = episodes(Scripted(say(*range(50, 56))), tokens=10)
    (rollout,) = sample(multi).rollouts
    assert (rollout.stop, len(rollout.turns), len(rollout.token_ids)) == ("length", 1, 4)


def test_an_environment_that_fails_leaves_its_episode_without_any_reward():
    told = []
    _, multi = episodes(Scripted(say(50, reward=0.5), EnvironmentFailed("step raised KeyError")), tells=told)
    (rollout,) = sample(multi).rollouts
    assert (rollout.stop, len(rollout.turns), rollout.total_reward) == ("environment", 2, None)
    assert told == ["an episode has no reward, because its environment failed: step raised KeyError"]


def test_a_run_ends_when_all_its_environments_fail():
    told = []
    _, multi = episodes(Scripted(EnvironmentFailed("no such world")), tells=told)
    with pytest.raises(EnvironmentFailed, match=f"the last {MOST_FAILURES} episodes failed.*no such world"):
        sample(multi, samples=MOST_FAILURES)
    assert len(told) == TOLD_FAILURES


def test_one_that_ends_between_failures_starts_their_count_again():
    _, multi = episodes(Scripted(EnvironmentFailed("down")))
    sample(multi, samples=MOST_FAILURES - 1)
    good = episodes(Scripted(DONE))[1]
    both = MultiTurn(good.pool, good.sampling, good.environments, good.limits, multi.failures)
    sample(both)
    sample(multi, samples=MOST_FAILURES - 1)


def test_a_beginning_that_fails_is_tried_again_and_then_ends_the_run():
    down = EnvironmentFailed("reset raised OSError")
    _, multi = episodes(Scripted(DONE, beginnings=[down] * (BEGINNINGS - 1)))
    assert sample(multi).rollouts[0].stop == "stop"
    _, multi = episodes(Scripted(DONE, beginnings=[down] * BEGINNINGS))
    with pytest.raises(EnvironmentFailed, match="reset raised OSError"):
        sample(multi)


def test_every_environment_is_ended_also_when_the_run_stops_in_the_middle():
    class Slow(Scripted):
        async def step(self, episode, completion, *, room):
            await asyncio.sleep(60)

    async def cancelled():
        environments = Slow(DONE)
        _, multi = episodes(environments)
        running = asyncio.ensure_future(multi.sample(PROMPT, samples=2, step=1, index=0))
        await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        return environments.ended

    assert sorted(asyncio.run(cancelled())) == ["1/0/0/0", "1/0/0/1"]


def test_a_prompt_that_is_sampled_again_has_other_names_for_its_environments():
    environments = Scripted(DONE)
    _, multi = episodes(environments)
    sample(multi)
    sample(multi)
    assert len(set(environments.ended)) == 2


def test_metrics_are_means_over_turns_and_shares_of_episodes():
    _, multi = episodes(Scripted(say(50, reward=0.5, calls=1, valid=1.0), say(50, valid=0.0), DONE))
    found = reduce_metrics(episode_metrics([sample(multi, samples=2)]))
    assert found["environment/turns_mean"] == 3
    assert found["environment/reward_mean"] == 1.5
    assert found["environment/valid_mean"] == 0.5
    assert found["environment/right_mean"] == 1.0
    assert found["environment/end_length_fraction"] == found["environment/end_environment_fraction"] == 0
    _, multi = episodes(Scripted(say(50, seconds=0.1)), turns=1)
    found = reduce_metrics(episode_metrics([sample(multi)]))
    assert found["environment/end_turns_fraction"] == 1
    assert np.isclose(found["environment/seconds_mean"], 0.1)
