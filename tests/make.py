"""Completions, rollouts, groups and batches for tests, each with only what a test says about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_rl.types import Completion, FinishReason, Prompt, Rollout, RolloutGroup, StopReason, TrainBatch, Turn

PROMPT = Prompt("addition/17", (1, 2), "What is 17+25?", {"answer": "42"})


def completion(
    tokens: Sequence[int] | int = 3,
    text: str = "",
    *,
    finish_reason: FinishReason = "stop",
    versions: Sequence[int] | int = 0,
    logprobs: Sequence[float] | float = -0.5,
) -> Completion:
    """A completion of these tokens, or of so many: 0, 1, 2, ...; one version or log-probability is that of all."""
    token_ids = np.arange(tokens) if isinstance(tokens, int) else np.asarray(tokens)
    return Completion(
        token_ids=token_ids.astype(np.int32),
        logprobs=np.broadcast_to(np.asarray(logprobs, np.float32), token_ids.shape).copy(),
        versions=np.broadcast_to(np.asarray(versions, np.int32), token_ids.shape).copy(),
        finish_reason=finish_reason,
        text=text,
    )


def rollout(
    *turns: Turn | Completion,
    reward: float | None = None,
    parts: Mapping[str, float | None] | None = None,
    stop: StopReason | None = None,
    token_rewards: Sequence[float] | None = None,
) -> Rollout:
    """An episode; a completion is a turn without an observation. It stops as its last completion does."""
    whole = tuple(turn if isinstance(turn, Turn) else Turn((), turn) for turn in turns or (completion(),))
    dense = None if token_rewards is None else np.array(token_rewards, np.float32)
    return Rollout(whole, reward, parts or {}, stop or whole[-1].completion.finish_reason, dense)


def group(*rollouts: Rollout | Completion, prompt: Prompt = PROMPT) -> RolloutGroup:
    """The rollouts of one prompt."""
    return RolloutGroup(prompt, [each if isinstance(each, Rollout) else rollout(each) for each in rollouts])


def batch(
    shape: tuple[int, int],
    *,
    lengths: Sequence[int] | None = None,
    prompts: Sequence[Sequence[int]] = ((1, 2),),
    **arrays: Any,
) -> TrainBatch:
    """R rollouts of T tokens, all of them sampled, without reward: zeros but for the lengths and what is given.

    Args:
        shape: R and T.
        lengths: R, of the rollouts; None: T each.
        prompts: tokens of each prompt; every one has the same number of rollouts.
        arrays: fields of the batch by name.
    """
    rows, width = shape
    lengths_R = np.full(rows, width, np.int32) if lengths is None else np.array(lengths, np.int32)
    mask_RT = np.arange(width) < lengths_R[:, None]
    fields = {
        "tokens_RT": np.zeros(shape, np.int32),
        "loss_mask_RT": mask_RT,
        "rollout_logprobs_RT": np.zeros(shape, np.float32),
        "rewards_R": np.zeros(rows, np.float32),
        "sampled_R": lengths_R,
    }
    return TrainBatch(
        prompt_ids=tuple(np.asarray(prompt, np.int32) for prompt in prompts),
        group_size=rows // len(prompts),
        lengths_R=lengths_R,
        **fields | arrays,
    )
