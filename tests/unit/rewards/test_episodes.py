"""Rewards of episodes, whose environments give rewards too."""

import asyncio

from ray_rl.rewards.combine import Part, Rewards
from ray_rl.rewards.judge import Judgement
from tests import make


class Constant:
    """A judge with one opinion."""

    async def judge(self, group):
        return [Judgement(0.5)] * len(group.rollouts)


def scored(*parts):
    episodes = [make.rollout(make.completion(2), stop=stop) for stop in ("stop", "environment")]
    group, _ = asyncio.run(Rewards(parts).score(make.group(*episodes)))
    return [(each.reward, dict(each.reward_parts)) for each in group.rollouts]


def test_an_episode_whose_environment_failed_has_no_reward_and_keeps_what_was_said_of_it():
    assert scored(Part("constant", 3.0, Constant())) == [(1.5, {"constant": 0.5}), (None, {"constant": 0.5})]


def test_without_judges_the_environment_alone_gives_rewards():
    assert scored() == [(None, {}), (None, {})]
