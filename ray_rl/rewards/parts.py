"""How each kind of reward is called: one `case` per kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from ray_rl.config.rewards import (
    CustomReward,
    Length,
    MathVerify,
    Number,
    ReasoningGymScore,
    Regex,
    RewardConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPart:
    """One reward function with its place in the sum."""

    name: str
    weight: float
    timeout_s: float
    on_error: Literal["stop", "skip"]
    function: str
    """Import path."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """{keyword of the function: column}."""
    options: Mapping[str, Any] = field(default_factory=dict)
    isolated: bool = True
    """Runs in a worker process, where a hang is killed."""
    users: bool = False
    """A user's function: gets all columns, and all completions of a prompt in one call."""


def build_parts(rewards: Sequence[RewardConfig]) -> tuple[RewardPart, ...]:
    """One part per entry of `rewards:`, whose names differ (a rule of the configuration)."""
    parts = tuple(_part(config) for config in rewards)
    assert len({part.name for part in parts}) == len(parts), "ray_rl.config.rules keeps the names apart"
    return parts


def _part(config: RewardConfig) -> RewardPart:
    common: dict[str, Any] = {
        "name": config.name or config.kind,
        "weight": config.weight,
        "timeout_s": config.timeout_s,
        "on_error": config.on_error,
    }
    match config:
        case Number():
            return RewardPart(
                **common,
                function="ray_rl.rewards.functions:number",
                needs={"answer": config.column, "finish_reasons": "finish_reasons"},
                options={"require_stop": config.require_stop},
                isolated=False,
            )
        case Length():
            return RewardPart(
                **common,
                function="ray_rl.rewards.functions:length",
                needs={"lengths": "lengths"},
                options={"target": config.target},
                isolated=False,
            )
        case Regex():
            return RewardPart(**common, function="ray_rl.rewards.functions:regex", options={"pattern": config.pattern})
        case MathVerify():
            return RewardPart(
                **common, function="ray_rl.rewards.math_answers:math_verify", needs={"answer": config.column}
            )
        case ReasoningGymScore():
            return RewardPart(
                **common,
                function="ray_rl.rewards.gym_scores:reasoning_gym_score",
                needs={"entry": "entry", "task": "task"},
            )
        case CustomReward():
            return RewardPart(**common, function=config.function, options=config.options, users=True)
        case _:
            assert_never(config)
