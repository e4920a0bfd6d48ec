"""Rows of the table of samples: the prompt, the completion, the reference answer and the rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_rl.config.rewards import RewardConfig
from ray_rl.metrics.text import Sample
from ray_rl.types import RolloutGroup

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
    found = (_value(group.prompt.columns, path) for path in answers)
    answer = next((str(value) for value in found if value is not None), None)
    return Sample(group.prompt.text, first.text, answer, first.reward, first.reward_parts)


def _value(columns: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a column, which may be nested (`reward_model.ground_truth`); None if there is none."""
    if path in columns:
        return columns[path]
    outer, _, inner = path.rpartition(".")
    within = _value(columns, outer) if outer else None
    return within.get(inner) if isinstance(within, Mapping) else None
