"""The gradient of a batch under DeepSpeed, and the same from losses that are written out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.config import RunConfig
from ray_rl.training.member import Member
from ray_rl.types import TrainBatch
from tests.unit.models.tiny import gradients, one_by_one, ragged_batch, tiny_llama

EXACT = 1e-5
"""Relative error allowed to float32 gradients."""
KL, ENTROPY, CLIP = 0.1, 0.01, 0.2
PARTITION_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}}
"""ZeRO-3 keeps small parameters whole otherwise, which would be all of a tiny model."""


@cache
def scored_batch() -> TrainBatch:
    """Four prompts of three completions; the policy has moved since they were sampled, some tokens beyond the clip."""
    batch = ragged_batch((5, 2, 7, 4), (3, 6, 1, 4, 4, 2, 8, 5, 7, 1, 2, 3))
    with torch.no_grad():
        logprobs_RT = one_by_one(tiny_llama(), batch).numpy()
    random = np.random.default_rng(1)

    def near() -> NDArray[np.float32]:
        return (logprobs_RT + random.normal(0, 0.3, logprobs_RT.shape)).astype(np.float32)

    return replace(batch, old_logprobs_RT=near(), reference_logprobs_RT=near(), kl_coefficient=KL)


BATCH = scored_batch()
EVERY_TERM = {"kl": {"coefficient": KL}, "entropy_coefficient": ENTROPY, "clip": [CLIP, CLIP]}


def token_losses(batch: TrainBatch, model: Any = None) -> tuple[list[Tensor], torch.nn.Module]:
    """The losses of each sequence's loss tokens, written out: no packing, no chunks, no DeepSpeed."""
    model = tiny_llama() if model is None else model
    losses = []
    for row, length in enumerate(batch.lengths_R):
        prompt = batch.prompt_ids[row // batch.group_size]
        tokens = torch.from_numpy(np.concatenate([prompt, batch.tokens_RT[row, :length]])).long()
        distribution = model(input_ids=tokens[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        logprobs = distribution.gather(1, tokens[len(prompt) :, None])[:, 0]
        entropy = -(distribution.exp() * distribution).sum(-1)
        old, reference, advantages = (
            torch.from_numpy(array[row, :length])
            for array in (batch.old_logprobs_RT, batch.reference_logprobs_RT, batch.advantages_RT)
        )
        ratio = (logprobs - old).exp()
        surrogate = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        kl = (reference - logprobs).exp() - (reference - logprobs) - 1
        is_loss = torch.from_numpy(batch.loss_mask_RT[row, :length])
        losses.append((surrogate + KL * kl - ENTROPY * entropy)[is_loss])
    return losses, model


@cache
def plain_gradient(reduction: str) -> Tensor:
    losses, model = token_losses(BATCH)
    sequences = [loss.mean() for loss in losses if len(loss)]
    (torch.cat(losses) if reduction == "token_mean" else torch.stack(sequences)).mean().backward()
    return gradients(model)


def read_gradient(member: Member, config: RunConfig, folder: str, batch: TrainBatch) -> NDArray[np.float32]:
    from deepspeed.utils import safe_get_full_grad

    from ray_rl.app.models import build_actor

    trainer = build_actor(config, (folder,), member)
    trainer.accumulate(batch, np.arange(batch.rows))
    return np.concatenate([safe_get_full_grad(p).flatten().cpu().numpy() for p in trainer.model.parameters()])
