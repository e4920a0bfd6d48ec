"""The learning rate as a function of the optimizer step."""

from __future__ import annotations

import math
from typing import assert_never

from ray_rl.config.train import Schedule


def learning_rate_factor(schedule: Schedule, *, step: int, total_steps: int) -> float:
    """Returns the share of the peak learning rate at optimizer step `step`, counted from 0.

    Warm-up: (step + 1) / (warmup_steps + 1), so that the first step already learns. Then, with x the share of the
    remaining steps that is over: constant 1; linear 1 - x; cosine (1 + cos(pi x)) / 2, both from 1 down to `minimum`,
    which the last step of the run reaches. Where only one step remains it stays at the peak.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    remaining = total_steps - 1 - schedule.warmup_steps
    over = min(1.0, (step - schedule.warmup_steps) / max(remaining, 1))
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            share = 1.0 - over
        case "cosine":
            share = (1.0 + math.cos(math.pi * over)) / 2.0
        case _:
            assert_never(schedule.kind)
    return schedule.minimum + (1.0 - schedule.minimum) * share
