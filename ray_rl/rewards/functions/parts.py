"""Says how each kind of reward is called: one `case` per kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, assert_never

from ray_rl.config.rewards import (
    Choice,
    CustomReward,
    FunctionConfig,
    Length,
    MathVerify,
    Number,
    ReasoningGymScore,
    Regex,
)
from ray_rl.isolation.pool import default_processes
from ray_rl.rewards.functions.custom import Signature

FUNCTIONS = "ray_rl.rewards.functions"
VERIFIER_BYTES = 4 << 30
"""Memory limit of a process in which a verifier of ours reads a completion or a gold. A power of powers in it would
otherwise use up all memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPart:
    """One reward function."""

    name: str
    timeout_s: float
    on_error: Literal["stop", "skip"]
    function: str
    """Import path."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """{keyword of the function: column}."""
    options: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 0
    """Number of worker processes, in which a call that hangs can be killed. 0: the function runs in this process; its
    time must be linear in the length of the text."""
    quick: str | None = None
    """Import path of a function with the same arguments and linear time, which runs in this process. It returns
    "undecided" for completions that the worker process must score."""
    users: bool = False
    """Whether it is a user's function, which gets all columns, and all completions of a prompt in one call."""
    signature: Signature | None = None
    """How a user's function is called; None derives it from its parameters."""


def build_part(config: FunctionConfig) -> RewardPart:
    """Returns the reward function of an entry of `rewards:`, and how to call it."""
    part = partial(RewardPart, name=config.label, timeout_s=config.timeout_s, on_error=config.on_error)
    processes = config.workers or default_processes()
    match config:
        case Number():
            options: dict[str, Any] = {"require_stop": config.require_stop}
            return part(function=f"{FUNCTIONS}.plain:number", needs=_compared(config), options=options)
        case Choice():
            options = {"require_stop": config.require_stop, "letters": config.letters}
            return part(function=f"{FUNCTIONS}.plain:choice", needs=_compared(config), options=options)
        case Length():
            needs, options = {"lengths": "lengths"}, {"target": config.target}
            return part(function=f"{FUNCTIONS}.plain:length", needs=needs, options=options)
        case Regex():
            options = {"pattern": config.pattern}
            return part(function=f"{FUNCTIONS}.plain:regex", options=options, processes=processes)
        case MathVerify():
            return part(
                function=f"{FUNCTIONS}.math_answers:math_verify",
                quick=f"{FUNCTIONS}.plain:quick_math_verify",
                needs=_compared(config),
                options={"require_stop": config.require_stop},
                processes=processes,
            )
        case ReasoningGymScore():
            needs = {"entry": "entry", "task": "task"}
            return part(function=f"{FUNCTIONS}.gym_scores:reasoning_gym_score", needs=needs, processes=processes)
        case CustomReward():
            return part(
                function=config.function,
                options=config.options,
                processes=config.workers or 1,
                users=True,
                signature=config.signature,
            )
        case _:
            assert_never(config)


def _compared(config: Number | Choice | MathVerify) -> dict[str, str]:
    return {"answer": config.column, "finish_reasons": "finish_reasons"}
