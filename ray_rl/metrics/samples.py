"""Rows of the table of samples: the prompt, the completion, the reference answer and the rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray_rl.config.rewards import RewardConfig
from ray_rl.metrics.text import Sample
from ray_rl.types import RolloutGroup, column_value

USUAL_ANSWERS = ("answer", "solution", "ground_truth", "reward_model.ground_truth", "label", "target")
"""Columns in which data sets keep the reference answer."""


def answer_columns(rewards: Sequence[RewardConfig]) -> tuple[str, ...]:
    """Returns the columns that may hold the reference answer: first those that rewards use, then the usual names."""
    compared = [settings["column"] for settings in map(dict, rewards) if "column" in settings]
    return tuple(dict.fromkeys([*compared, *USUAL_ANSWERS]))


def first_sample(group: RolloutGroup, answers: tuple[str, ...]) -> Sample:
    """Returns the first completion of a group.

    Args:
        group: the completions of a prompt.
        answers: columns that may hold the reference answer, the best first.
    """
    first = group.rollouts[0]
    answer = _first_value(group.prompt.columns, answers)
    return Sample(group.prompt.text, first.text, answer, first.total_reward, first.reward_parts)


def _first_value(columns: Mapping[str, Any], paths: Sequence[str]) -> str | None:
    for path in paths:
        with suppress(KeyError):
            value = column_value(columns, path)
            if value is not None:
                return str(value)
    return None
