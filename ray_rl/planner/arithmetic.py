"""Computes how the rollouts or examples of a step divide over engines, optimizer steps, workers and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ray_rl.config import RunConfig
from ray_rl.config.roles import roles_of
from ray_rl.config.train import Trained
from ray_rl.planner.memory import Bounds


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker of a trained role does in one optimizer step."""

    sequences: int
    """The most sequences."""
    micro_batches: int
    """The most micro-batches, if every sequence has full length."""
    rows: int
    """Sequences of full length in a micro-batch."""


@dataclass(frozen=True, slots=True)
class Step:
    """The sizes of one training step."""

    prompts: int
    """Prompts, or examples."""
    group_size: int
    """Sequences of a prompt or an example."""
    sequences: int
    """Rollouts, or sequences of examples."""
    per_engine: int
    """The most rollouts of one engine; 0 without engines."""
    optimizer_steps: int
    per_update: int
    """Sequences of an optimizer step."""
    longest: int
    """Tokens of the longest sequence."""
    shares: dict[str, Share]
    """Share of a worker, by trained role."""


def step_arithmetic(config: RunConfig) -> Step:
    """Returns the sizes of one step of a valid configuration."""
    if config.is_offline:
        prompts, group_size = config.offline.batch_size, config.offline.rows_per_example
        minibatches = optimizer_steps = 1
        per_engine = 0
    else:
        algorithm = config.online
        prompts, group_size, minibatches = algorithm.prompts_per_step, algorithm.group_size, algorithm.minibatches
        optimizer_steps = algorithm.optimizer_steps
        per_engine = ceil(prompts / config.rollout.engines) * group_size
    bounds = Bounds(config)
    per_update = prompts * group_size // minibatches
    trained = [(role.name, role.trained) for role in roles_of(config)]
    return Step(
        prompts=prompts,
        group_size=group_size,
        sequences=prompts * group_size,
        per_engine=per_engine,
        optimizer_steps=optimizer_steps,
        per_update=per_update,
        longest=bounds.longest,
        shares={name: _share(model, per_update, bounds) for name, model in trained if model is not None},
    )


def _share(trained: Trained, per_update: int, bounds: Bounds) -> Share:
    whole = bounds.whole_rows
    sequences = ceil(per_update / whole / trained.workers) * whole
    rows = max(1, trained.micro_batch_tokens // (whole * bounds.longest)) * whole
    return Share(sequences, ceil(sequences / rows), rows)
