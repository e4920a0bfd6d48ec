"""The judge behind the rewards for calls of tools. It compares no text, so it runs in the event loop."""

from __future__ import annotations

from typing import assert_never

from ray_rl.config.rewards import Recovery, RightCall, ToolFormat, ToolReward, ValidCalls
from ray_rl.errors import ConfigError, DataError, RewardError
from ray_rl.metrics.metric import Total
from ray_rl.rewards.judge import Judgement
from ray_rl.rewards.tools.right_calls import expected_calls
from ray_rl.rewards.tools.scores import recovery, right_call, tool_format, valid_calls
from ray_rl.types import Prompt, Rollout, RolloutGroup, column_value


class ToolJudge:
    """Scores the calls of tools in the episodes of a prompt; see `Judge`."""

    def __init__(self, config: ToolReward) -> None:
        """Makes the judge of an entry of `rewards:`."""
        self._config = config

    async def judge(self, group: RolloutGroup) -> list[Judgement]:
        """Returns one judgement for each rollout, in order.

        Raises:
            RewardError: the column does not hold expected calls, and the entry is not set to `on_error: skip`.
            ConfigError: there is no such column.
        """
        config, prompt = self._config, group.prompt
        try:
            scores = [self._score(prompt, rollout) for rollout in group.rollouts]
        except DataError as error:
            if config.on_error == "skip":
                count = len(group.rollouts)
                first = Judgement(None, (Total(f"reward/{config.label}_errors", count),))
                return [first, *[Judgement(None)] * (count - 1)]
            raise RewardError(
                f"reward {config.label!r}, prompt {prompt.id}: {error}. "
                "Correct the data, or set on_error: skip to continue without an opinion"
            ) from error
        return [Judgement(score) for score in scores]

    def _score(self, prompt: Prompt, rollout: Rollout) -> float | None:
        match self._config:
            case ToolFormat():
                return tool_format(rollout)
            case ValidCalls():
                return valid_calls(rollout)
            case RightCall(column=column, calls=calls):
                return right_call(rollout, expected_calls(_value(prompt, column, self._config.label)), calls=calls)
            case Recovery():
                return recovery(rollout)
            case _:
                assert_never(self._config)


def _value(prompt: Prompt, column: str, name: str) -> object:
    try:
        return column_value(prompt.columns, column)
    except KeyError:
        existing = ", ".join(sorted(prompt.columns)) or "none"
        raise ConfigError(
            f"reward {name!r} needs a column {column!r}; prompt {prompt.id} has {existing}; "
            "set `column` of the reward to one of them"
        ) from None
