"""The losses of the policy, one class per `kind`. R is the ratio of its probabilities to those before the update."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ray_rl.config.base import Config, ImportPath


class Clipped(Config):
    """PPO's pessimistic objective, -min(R A, clip(R) A) (arXiv:1707.06347, equation 7)."""

    kind: Literal["clipped"] = "clipped"
    dual_clip: float | None = Field(None, gt=1)
    """Upper limit of the loss for a negative advantage A: -A times this (arXiv:1912.09729). verl: 3; others: none."""
    ratio_cap: float | None = Field(None, gt=0)
    """Upper limit of R for any sign of A, applied first (TRL's delta)."""


class Gspo(Config):
    """PPO's objective with one ratio per sequence (GSPO, arXiv:2507.18071). Use it with `reduction: sequence_mean`."""

    kind: Literal["gspo"] = "gspo"
    gradient: Literal["token", "sequence"] = "token"
    """Whether the gradient flows through each token's log-probability (GSPO-token, verl) or through their mean
    (OpenRLHF). Both are equal if all tokens of a sequence have the same advantage."""


class Cispo(Config):
    """REINFORCE weighted by the clipped ratio (CISPO, arXiv:2506.13585); `clip: [1, x]` means no lower limit."""

    kind: Literal["cispo"] = "cispo"


class Sapo(Config):
    """A soft gate replaces the clip (SAPO, arXiv:2511.20347); `clip` has no effect. Use `reduction: sequence_mean`."""

    kind: Literal["sapo"] = "sapo"
    temperature_positive: float = Field(1.0, gt=0)
    """Steepness of the gate where A > 0."""
    temperature_negative: float = Field(1.05, gt=0)
    """Steepness of the gate where A <= 0; larger, so that unlikely tokens have less influence."""


class PolicyGradient(Config):
    """-A log p, without a ratio (GPG, arXiv:2504.02546); `clip` has no effect."""

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
