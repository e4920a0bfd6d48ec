"""Estimators of how much better a completion was than expected, one class per `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ray_rl.config.base import Config, ImportPath


class Whiten(Config):
    """Normalisation over all loss tokens of the batch: (x - mean) / sqrt(var + eps)."""

    divide_by_std: bool = True
    """False subtracts only the mean."""
    ddof: Literal[0, 1] = 1
    """1: the unbiased variance (verl, TRL); 0: the biased one (OpenRLHF)."""
    eps: float = Field(1e-8, gt=0)
    """Number that is added to the variance."""
    eps_is_floor: bool = False
    """Use eps as the smallest variance instead of adding it (OpenRLHF)."""


class GroupAdvantage(Config):
    """Reward minus the mean of its group (GRPO, arXiv:2402.03300, section 4.1)."""

    kind: Literal["group"] = "group"
    divide_by_std: bool = True
    """Divide by the standard deviation; Dr. GRPO (arXiv:2503.20783) does not."""
    std_of: Literal["group", "batch"] = "group"
    """Standard deviation of the group's rewards, or of all rewards of the step (TRL's scale_rewards)."""
    ddof: Literal[0, 1] = 0
    """0: the population's standard deviation; 1: the sample's (verl, OpenRLHF, TRL)."""
    eps: float = Field(1e-6, gt=0)
    """Number that is added to the standard deviation. verl: 1e-6; OpenRLHF: 1e-9; TRL: 1e-4."""
    singleton: Literal["zero", "score"] = "zero"
    """Advantage of the only scored completion of a group: 0 (TRL), or its reward (verl)."""


class LeaveOneOut(Config):
    """Reward minus the mean of the group's other rewards (RLOO, arXiv:2402.14740)."""

    kind: Literal["leave_one_out"] = "leave_one_out"
    singleton: Literal["zero", "score"] = "zero"
    """Advantage of the only scored completion of a group: 0 (TRL), or its reward (verl)."""
    whiten: Whiten | None = None
    """Normalisation of the advantages over the batch."""


class ReinforcePlusPlus(Config):
    """Discounted reward-to-go, whitened over the batch (REINFORCE++, arXiv:2501.03262)."""

    kind: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of a reward one token later."""
    whiten: Whiten = Whiten()
    """Normalisation of the advantages over the batch."""


class ReinforcePlusPlusBaseline(Config):
    """Reward minus the mean of its group, whitened over the batch (REINFORCE++-baseline, arXiv:2501.03262)."""

    kind: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    whiten: Whiten = Whiten()
    """Normalisation of the advantages over the batch."""


class GpgAdvantage(Config):
    """Centred rewards, scaled up to make up for groups of equal rewards (GPG, arXiv:2504.02546)."""

    kind: Literal["gpg"] = "gpg"
    divisor: float = Field(1.0, gt=0)
    """Divisor of the advantages."""


class Gae(Config):
    """Generalised advantage estimation (arXiv:1506.02438). Needs a critic."""

    kind: Literal["gae"] = "gae"
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of a reward one token later."""
    lam: float = Field(0.95, ge=0, le=1)
    """Weight of longer returns: 0 is one-step TD, 1 is Monte Carlo. TRL: 0.95; verl and OpenRLHF: 1."""
    gaps: Literal["carry", "zero"] = "carry"
    """Effect of tokens that are not in the loss: carry ignores them (verl); zero gives them V = 0, which ends the
    bootstrap (OpenRLHF)."""
    whiten: Whiten | None = Whiten()
    """Normalisation of the advantages over the batch; it does not change the critic's targets."""


class CustomAdvantage(Config):
    """An import path to `function(scores_PG, is_scored_PG, **options) -> advantages_PG` (docs/algorithms.md)."""

    kind: Literal["custom"] = "custom"
    function: ImportPath
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed as further keywords."""
    whiten: Whiten | None = None
    """Normalisation over the batch afterwards."""


AdvantageConfig = Annotated[
    GroupAdvantage | LeaveOneOut | ReinforcePlusPlus | ReinforcePlusPlusBaseline | GpgAdvantage | Gae | CustomAdvantage,
    Field(discriminator="kind"),
]
