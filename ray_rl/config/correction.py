"""Correction for the gap between the engine that sampled and the trainer that learns. w = p_trainer / p_engine."""

from typing import Annotated, Literal

from pydantic import Field

from ray_rl.config.base import Config


class TruncateTokens(Config):
    """w of each token, clipped to [low, high] (truncated importance sampling)."""

    kind: Literal["truncate_tokens"] = "truncate_tokens"
    low: float = Field(0.0, ge=0)
    """OpenRLHF: 0.5."""
    high: float = Field(2.0, gt=0)
    """verl: 2; OpenRLHF: 5."""


class MaskTokens(Config):
    """w of each token, and 0 outside [low, high] (IcePop)."""

    kind: Literal["mask_tokens"] = "mask_tokens"
    low: float = Field(0.5, ge=0)
    """OpenRLHF: 0.5."""
    high: float = Field(5.0, gt=0)
    """OpenRLHF: 5."""


class TruncateSequences(Config):
    """w of the whole completion, at most `high`."""

    kind: Literal["truncate_sequences"] = "truncate_sequences"
    high: float = Field(3.0, gt=0)
    """TRL: 3."""
    over: Literal["sum", "mean"] = "sum"
    """Of the log-ratios of its tokens: sum is that of the completion (TRL), mean does not depend on its length."""


class MaskSequences(Config):
    """w of the whole completion, and 0 outside [low, high]."""

    kind: Literal["mask_sequences"] = "mask_sequences"
    low: float = Field(0.0, ge=0)
    high: float = Field(3.0, gt=0)
    """TRL: 3."""
    over: Literal["sum", "mean"] = "sum"
    """As for truncate_sequences; OpenRLHF: mean."""


Correction = Annotated[TruncateTokens | MaskTokens | TruncateSequences | MaskSequences, Field(discriminator="kind")]
