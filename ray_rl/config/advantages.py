"""How much better a completion was than expected: one class an estimator."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ray_rl.config.base import Config, ImportPath


class Whiten(Config):
    """Normalisation over all loss tokens of the batch: (x - mean) / sqrt(var + eps)."""

    divide_by_std: bool = True
    """False only subtracts the mean."""
    ddof: Literal[0, 1] = 1
    """1 is the unbiased variance (verl, TRL); 0 the biased one (OpenRLHF)."""
    eps: float = Field(1e-8, gt=0)
    """Added to the variance."""
    eps_is_floor: bool = False
    """The variance is at least eps, instead (OpenRLHF)."""


class GroupAdvantage(Config):
    """Reward minus the mean of its group (GRPO, arXiv:2402.03300, section 4.1)."""

    kind: Literal["group"] = "group"
    divide_by_std: bool = True
    """Divide by the standard deviation. False: Dr. GRPO, arXiv:2503.20783."""
    std_of: Literal["group", "batch"] = "group"
    """Whose standard deviation; batch is that of all rewards of the step (TRL's scale_rewards)."""
    ddof: Literal[0, 1] = 0
    """0 is the population's standard deviation; 1 the sample's (verl, OpenRLHF, TRL)."""
    eps: float = Field(1e-6, gt=0)
    """Added to the standard deviation. verl: 1e-6; OpenRLHF: 1e-9; TRL: 1e-4."""
    singleton: Literal["zero", "score"] = "zero"
    """Advantage of the only scored completion of a group: 0 (TRL), or its reward as it is (verl)."""


class LeaveOneOut(Config):
    """Reward minus the mean of the others of its group (RLOO, arXiv:2402.14740)."""

    kind: Literal["leave_one_out"] = "leave_one_out"
    singleton: Literal["zero", "score"] = "zero"
    """As for `group`."""
    whiten: Whiten | None = None
    """Normalisation over the batch afterwards."""


class ReinforcePlusPlus(Config):
    """Discounted reward-to-go, whitened over the batch (REINFORCE++, arXiv:2501.03262)."""

    kind: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of a reward one token later."""
    whiten: Whiten = Whiten()


class ReinforcePlusPlusBaseline(Config):
    """Reward minus the mean of its group, whitened over the batch (REINFORCE++-baseline, arXiv:2501.03262)."""

    kind: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    whiten: Whiten = Whiten()


class GpgAdvantage(Config):
    """Centred rewards, scaled up for the groups that teach nothing (GPG, arXiv:2504.02546)."""

    kind: Literal["gpg"] = "gpg"
    divisor: float = Field(1.0, gt=0)
    """Of the advantages."""


class Gae(Config):
    """Generalised advantage estimation (arXiv:1506.02438). Needs a critic."""

    kind: Literal["gae"] = "gae"
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of a reward one token later."""
    lam: float = Field(0.95, ge=0, le=1)
    """Weight of longer returns: 0 is one-step TD, 1 is Monte Carlo. TRL: 0.95; verl and OpenRLHF: 1."""
    gaps: Literal["carry", "zero"] = "carry"
    """What a gap in the loss mask does: nothing (verl), or V = 0 in it, which ends the bootstrap (OpenRLHF)."""
    whiten: Whiten | None = Whiten()
    """Normalisation of the advantages over the batch; the critic's targets are taken before it."""


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
