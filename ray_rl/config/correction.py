"""Importance weights that correct the difference between engine and trainer: w = p_trainer / p_engine."""

from typing import Annotated, Literal

from pydantic import Field

from ray_rl.config.base import Config


class TruncateTokens(Config):
    """Weight each token by w, clipped to [low, high] (truncated importance sampling)."""

    kind: Literal["truncate_tokens"] = "truncate_tokens"
    low: float = Field(0.0, ge=0)
    """OpenRLHF: 0.5."""
    high: float = Field(2.0, gt=0)
    """verl: 2; OpenRLHF: 5."""


class MaskTokens(Config):
    """Weight each token by w, or by 0 if w is outside [low, high] (IcePop)."""

    kind: Literal["mask_tokens"] = "mask_tokens"
    low: float = Field(0.5, ge=0)
    """OpenRLHF: 0.5."""
    high: float = Field(5.0, gt=0)
    """OpenRLHF: 5."""


class TruncateSequences(Config):
    """Weight all tokens of a completion by its w, but at most by `high`."""

    kind: Literal["truncate_sequences"] = "truncate_sequences"
    high: float = Field(3.0, gt=0)
    """TRL: 3."""
    over: Literal["sum", "mean"] = "sum"
    """How the log-ratios of tokens become that of the completion: sum (TRL), or mean, which does not depend on
    length."""


class MaskSequences(Config):
    """Weight all tokens of a completion by its w, or by 0 if it is outside [low, high]."""

    kind: Literal["mask_sequences"] = "mask_sequences"
    low: float = Field(0.0, ge=0)
    """Smallest w that is not replaced by 0."""
    high: float = Field(3.0, gt=0)
    """TRL: 3."""
    over: Literal["sum", "mean"] = "sum"
    """How the log-ratios of tokens become that of the completion: sum (TRL), or mean (OpenRLHF), which does not depend
    on length."""


Correction = Annotated[TruncateTokens | MaskTokens | TruncateSequences | MaskSequences, Field(discriminator="kind")]
