"""What the policy minimises: one class a surrogate. R is the ratio of the policy to itself before the update."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ray_rl.config.base import Config, ImportPath


class Clipped(Config):
    """PPO's pessimistic objective, -min(R A, clip(R) A) (arXiv:1707.06347, equation 7)."""

    kind: Literal["clipped"] = "clipped"
    dual_clip: float | None = Field(None, gt=1)
    """Bounds the loss of a negative advantage at -A times this (arXiv:1912.09729). verl: 3; OpenRLHF, TRL: none."""
    ratio_cap: float | None = Field(None, gt=0)
    """R is at most this before all else, whatever the sign of A (TRL's delta)."""


class Gspo(Config):
    """PPO's objective with one ratio per sequence (GSPO, arXiv:2507.18071). Wants reduction: sequence_mean."""

    kind: Literal["gspo"] = "gspo"
    gradient: Literal["token", "sequence"] = "token"
    """Through each token's log-probability (GSPO-token, verl), or through the mean (OpenRLHF). Where the advantage is
    the same for all tokens of a sequence both are equal."""


class Cispo(Config):
    """REINFORCE weighted by the clipped ratio (CISPO, arXiv:2506.13585). clip: [1, x] has no lower bound, as in TRL."""

    kind: Literal["cispo"] = "cispo"


class Sapo(Config):
    """A soft gate in place of the clip (SAPO, arXiv:2511.20347). Wants reduction: sequence_mean. `clip` is not used."""

    kind: Literal["sapo"] = "sapo"
    temperature_positive: float = Field(1.0, gt=0)
    """Steepness of the gate where A > 0."""
    temperature_negative: float = Field(1.05, gt=0)
    """Elsewhere; larger, so that unlikely tokens push less."""


class PolicyGradient(Config):
    """-A log p, without ratio and bounds (GPG, arXiv:2504.02546). `clip` is not used."""

    kind: Literal["policy_gradient"] = "policy_gradient"


class CustomLoss(Config):
    """An import path to a function that returns the loss of each token, not reduced (docs/algorithms.md).

    It is `function(logprobs_N, old_logprobs_N, advantages_N, row_N, **options) -> (loss_N, is_clipped_N)`. Where it has
    parameters `clip` and `max_log_ratio`, it gets these settings of the algorithm, too.
    """

    kind: Literal["custom"] = "custom"
    function: ImportPath
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed as further keywords."""

    @field_validator("options")
    @classmethod
    def _has_no_settings(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("clip", "max_log_ratio"):
            if name in options:
                raise ValueError(f"{name} is a setting of every algorithm; set algorithm.{name}, which is passed")
        return options


LossConfig = Annotated[Clipped | Gspo | Cispo | Sapo | PolicyGradient | CustomLoss, Field(discriminator="kind")]
