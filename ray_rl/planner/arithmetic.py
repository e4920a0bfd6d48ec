"""Computes how the rollouts of a step divide over engines, optimizer steps, workers and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ray_rl.config import RunConfig
from ray_rl.config.roles import roles_of
from ray_rl.config.train import Trained


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker of a trained role does in one optimizer step."""

    rollouts: int
    """The most rollouts."""
    micro_batches: int
    """The most micro-batches, if every sequence has full length."""
    rows: int
    """Sequences of full length in a micro-batch."""


@dataclass(frozen=True, slots=True)
class Step:
    """The sizes of one training step."""

    prompts: int
    group_size: int
    rollouts: int
    per_engine: int
    """The most rollouts of one engine."""
    optimizer_steps: int
    per_update: int
    """Rollouts of an optimizer step."""
    longest: int
    """Tokens of the longest sequence."""
    shares: dict[str, Share]
    """Share of a worker, by trained role."""


def step_arithmetic(config: RunConfig) -> Step:
    """Returns the sizes of one step of a valid configuration."""
    algorithm = config.online
    rollouts = algorithm.prompts_per_step * algorithm.group_size
    per_update = rollouts // algorithm.minibatches
    longest = config.data.max_prompt_tokens + config.rollout.max_tokens
    trained = [(role.name, role.trained) for role in roles_of(config)]
    shares = {name: _share(model, per_update, longest) for name, model in trained if model is not None}
    return Step(
        prompts=algorithm.prompts_per_step,
        group_size=algorithm.group_size,
        rollouts=rollouts,
        per_engine=ceil(algorithm.prompts_per_step / config.rollout.engines) * algorithm.group_size,
        optimizer_steps=algorithm.optimizer_steps,
        per_update=per_update,
        longest=longest,
        shares=shares,
    )


def _share(trained: Trained, per_update: int, longest: int) -> Share:
    rollouts = ceil(per_update / trained.workers)
    rows = max(1, trained.micro_batch_tokens // longest)
    return Share(rollouts, ceil(rollouts / rows), rows)
