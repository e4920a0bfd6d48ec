"""What is optimised."""

from typing import Literal

from pydantic import Field

from ray_rl.config.base import Config


class GroupAdvantage(Config):
    """Reward minus the mean of its group (GRPO, arXiv:2402.03300, section 4.1)."""

    kind: Literal["group"] = "group"
    divide_by_std: bool = True
    """Divide by the group's population standard deviation. False: Dr. GRPO, arXiv:2503.20783."""
    eps: float = Field(1e-6, gt=0)
    """Added to the standard deviation."""


class Kl(Config):
    """Penalty on the distance to a frozen reference, in the loss. A reference role exists if the coefficient is > 0."""

    coefficient: float = Field(0.0, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman 2020, "Approximating KL divergence". k3 = exp(r - l) - (r - l) - 1: unbiased and never negative."""


class Grpo(Config):
    """Group relative policy optimisation with a clipped surrogate."""

    kind: Literal["grpo"] = "grpo"
    prompts_per_step: int = Field(8, ge=1)
    """P."""
    group_size: int = Field(8, ge=1)
    """G, completions per prompt; at least 2."""
    advantage: GroupAdvantage = GroupAdvantage()
    clip: tuple[float, float] = (0.2, 0.2)
    """The ratio is clipped to [1 - clip[0], 1 + clip[1]]."""
    kl: Kl = Kl()
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the mean token entropy, maximised."""
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    """token_mean: sum over all tokens of the optimizer step / their number (DAPO). sequence_mean: mean over sequences
    of the mean over tokens (GRPO as published)."""
    update_epochs: int = Field(1, ge=1)
    """Passes over the batch of a step."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps a pass; divides prompts_per_step."""

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps a batch."""
        return self.update_epochs * self.minibatches
