"""The section `model.adapter`: small matrices that are trained while the weights of the model are frozen."""

import math
from typing import Annotated, Literal

from pydantic import Field

from ray_rl.config.base import Config

RATE_RATIO = 10
"""Learning rate of adapters over that of full fine-tuning. Schulman et al., "LoRA Without Regret", 2025, found 10 to
fit tasks of supervised and of reinforcement learning, for any rank."""

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The sizes for which vLLM can reserve memory (its `max_lora_rank`)."""


class Lora(Config):
    """Low-rank adapters: a targeted matrix W computes W + scale * B A, and only A and B are trained.

    Source: LoRA, arXiv:2106.09685. The defaults of rank, alpha and targets are those of "LoRA Without Regret"
    (Schulman et al., 2025), where the best learning rate does not depend on the rank.
    """

    kind: Literal["lora"] = "lora"
    path: str | None = None
    """Folder of peft with adapters of `model.path`, from whose values training starts. Rank, alpha, targets and rs_lora
    are then those of the folder. The folder can also be given as `model.path`, where it stands for its model and this
    key. None starts with new adapters."""
    rank: int = Field(32, ge=1)
    """Number of rows of A and columns of B. Reinforcement learning needs little: 1 to 32 reach full fine-tuning's
    results. Supervised fine-tuning on many examples needs more, up to 256."""
    alpha: float = Field(32.0, gt=0)
    """The scale is alpha / rank."""
    targets: Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = (
        "all-linear"
    )
    """Linear layers that get adapters: all of them except the head, or those with one of these names, such as
    [q_proj, v_proj]. Attention alone learns less than all layers at the same number of parameters."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of A that are dropped in training. Only where no log-probabilities are compared: with sft,
    reward_model and process_reward_model."""
    init: Literal["default", "gaussian"] = "default"
    """How A starts, while B starts with zeros. default: uniform within 1 / sqrt(inputs). gaussian: normal with standard
    deviation 1 / rank."""
    rs_lora: bool = False
    """Make the scale alpha / sqrt(rank), for high ranks (rsLoRA, arXiv:2312.03732)."""
    quantise: Literal["nf4"] | None = None
    """Hold the linear layers of the trained models, without their heads, in 4 bits (QLoRA, arXiv:2305.14314), which
    takes a quarter of the memory of bfloat16. Engines get the rounded weights, so that they sample from the policy that
    is trained. Needs the package bitsandbytes, and ZeRO stage 0, 1 or 2."""

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)

    @property
    def engine_rank(self) -> int:
        """The least size of vLLM that holds the adapters; the largest one if none does."""
        return next((size for size in ENGINE_RANKS if size >= self.rank), ENGINE_RANKS[-1])
