from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from ray_rl.config.rewards import RewardConfig
from ray_rl.errors import ConfigError, RewardError
from ray_rl.rewards.combine import build_rewards
from ray_rl.types import Completion, Prompt, Rollout, RolloutGroup, ToolCall, Turn

GOOD = ToolCall("add", {"a": 1})
OTHER = ToolCall("sub", {})
BAD = ToolCall("", None, "Your tool call is not valid JSON")


def turn(*calls: ToolCall, **metrics: float) -> Turn:
    none = np.zeros(0)
    completion = Completion(none.astype("int32"), none.astype("float32"), none.astype("int32"), "stop", "")
    return Turn((), completion, tool_calls=calls, metrics=metrics)


def episode(*turns: Turn) -> Rollout:
    return Rollout(turns, None, {}, "stop")


async def scores(entry: Mapping[str, Any], *rollouts: Rollout, **columns: Any) -> list[float | None]:
    rewards = build_rewards(TypeAdapter(list[RewardConfig]).validate_python([entry]))
    group, metrics = await rewards.score(RolloutGroup(Prompt("p/1", (1,), "?", columns), rollouts))
    assert metrics == []
    return [rollout.reward_parts[entry["kind"]] for rollout in group.rollouts]


async def test_the_format_is_right_in_the_turns_whose_calls_are_all_well_formed():
    rollouts = [episode(turn(GOOD)), episode(turn(GOOD, BAD), turn(GOOD), turn()), episode(turn(BAD)), episode(turn())]
    assert await scores({"kind": "tool_format"}, *rollouts) == [1.0, 0.5, 0.0, None]


async def test_the_share_of_valid_calls_counts_calls():
    rollouts = [episode(turn(GOOD, BAD, valid=1.0), turn(GOOD, GOOD, valid=2.0)), episode(turn()), episode(turn(BAD))]
    assert await scores({"kind": "valid_calls"}, *rollouts) == [0.75, None, 0.0]


async def test_recovery_is_a_call_that_works_in_the_turn_after_an_error():
    bad, good, stuck = (
        turn(BAD, errors=1.0),
        turn(GOOD, errors=0.0, recovered=1.0),
        turn(BAD, errors=1.0, recovered=0.0),
    )
    silent = turn(errors=0.0, recovered=0.0)
    rollouts = [
        episode(good), episode(bad, good), episode(bad, stuck, good), episode(bad, silent), episode(bad),
        episode(turn(GOOD, errors=0.0), turn(errors=0.0)),
    ]  # fmt: skip
    assert await scores({"kind": "recovery"}, *rollouts) == [None, 1.0, 0.5, 0.0, 0.0, None]


ONE = [{"name": "add", "arguments": {"a": 1}}]


async def test_all_calls_of_the_episode_are_compared_or_the_first():
    rollouts = [
        episode(turn(GOOD), turn()), episode(turn(GOOD), turn(OTHER)), episode(turn(OTHER), turn(GOOD)),
        episode(turn(BAD), turn(GOOD)), episode(turn()),
    ]  # fmt: skip
    assert await scores({"kind": "right_call"}, *rollouts, calls=ONE) == [1, 0, 0, 0, 0]
    first = {"kind": "right_call", "calls": "first", "column": "expected.calls"}
    assert await scores(first, *rollouts, expected={"calls": ONE}) == [1, 1, 0, 0, 0]
    for which in ("first", "all"):
        no_call = {"kind": "right_call", "calls": which}
        assert await scores(no_call, *rollouts, calls=[]) == [0, 0, 0, 0, 1]
        assert await scores(no_call, *rollouts, calls=None) == [None] * 5


async def test_a_column_that_is_missing_or_wrong_is_told():
    with pytest.raises(ConfigError, match=r"needs a column 'calls'; prompt p/1 has answer"):
        await scores({"kind": "right_call"}, episode(turn()), answer=1)
    with pytest.raises(RewardError, match=r"reward 'right_call', prompt p/1: .*expected calls are a list"):
        await scores({"kind": "right_call"}, episode(turn()), calls=7)


async def test_a_wrong_column_can_be_skipped_and_is_counted():
    (config,) = TypeAdapter(list[RewardConfig]).validate_python([{"kind": "right_call", "on_error": "skip"}])
    group = RolloutGroup(Prompt("p/1", (1,), "?", {"calls": 7}), [episode(turn())] * 2)
    scored, (errors,) = await build_rewards([config]).score(group)
    assert (errors.name, errors.value) == ("reward/right_call_errors", 2)
    assert [rollout.reward for rollout in scored.rollouts] == [None, None]
