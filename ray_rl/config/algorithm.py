"""The settings of all policy-gradient algorithms. `ray_rl.config.online` has one class per algorithm."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_rl.config.advantages import AdvantageConfig, GroupAdvantage
from ray_rl.config.base import Config
from ray_rl.config.correction import Correction
from ray_rl.config.losses import Clipped, LossConfig

Count = Annotated[int, Field(ge=1)]
Clip = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0)]]
Reduction = Literal["token_mean", "sequence_mean", "constant"]


class FixedKl(Config):
    """The coefficient is constant."""

    kind: Literal["fixed"] = "fixed"


class AdaptiveKl(Config):
    """The coefficient is adapted to the divergence (Ziegler et al., arXiv:1909.08593)."""

    kind: Literal["adaptive"] = "adaptive"
    target: float = Field(0.1, gt=0)
    """Desired divergence, in nats per token. verl: 0.1."""
    horizon: float = Field(10_000.0, gt=0)
    """Number of sequences after which a constant error of 0.2 or more has changed the coefficient by a fifth. verl,
    OpenRLHF: 10000."""


class Kl(Config):
    """Penalty on the distance to a frozen reference model, which is loaded if the coefficient is above 0."""

    coefficient: float = Field(0.0, ge=0)
    """Weight of the penalty. verl's examples: 0.001; OpenRLHF: 0.01 in the reward; TRL: 0.05 in the reward of PPO and
    RLOO."""
    place: Literal["loss", "reward"] = "loss"
    """loss: the penalty is added to the loss of each token (GRPO). reward: it is subtracted from the reward of each
    token if the advantage estimator uses rewards of tokens (PPO, REINFORCE++); otherwise the sum over the tokens is
    subtracted from the reward of the completion (RLOO)."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence at a token, from the log-probabilities l of the policy and r of the reference. k3 =
    exp(r - l) - (r - l) - 1 is unbiased and never negative; k1 = l - r is usual in the reward. Source: Schulman 2020,
    "Approximating KL divergence"."""
    control: FixedKl | AdaptiveKl = Field(FixedKl(), discriminator="kind")
    """How the coefficient changes during the run."""
    max_log_ratio: float | None = Field(20.0, gt=0)
    """Upper limit of r - l before exp, for k3. verl: 20; OpenRLHF, TRL: none."""
    bound: float | None = Field(None, gt=0)
    """Largest absolute value of a token's estimate. verl: 10 for k3; OpenRLHF: 10; TRL: none."""
    k2_gradient: bool = False
    """In the loss, use the value of the estimator with the gradient of k2 (verl's suffix "+")."""


class Shaping(Config):
    """How the reward of a completion is changed before advantages are computed."""

    per_token: bool = False
    """Divide the reward by the number of tokens of the completion."""
    whiten: bool = False
    """Divide rewards by their standard deviation over the batch (ddof 1) without changing their mean (TRL's
    whiten_rewards)."""
    overlong_share: float = Field(0.0, ge=0, lt=1)
    """DAPO's soft punishment of long completions: over this last share of `rollout.max_tokens`, the reward falls
    linearly. The paper uses 0.2."""
    overlong_penalty: float = Field(1.0, ge=0)
    """How much lower the reward is for a completion of `rollout.max_tokens` tokens."""
    clip: float | None = Field(None, gt=0)
    """Largest absolute value of a score, after the baseline of its group is subtracted if there is one. OpenRLHF:
    10."""


class DynamicSampling(Config):
    """Replace groups whose rewards are all equal by groups of other prompts (DAPO, arXiv:2503.14476, section 3.2)."""

    max_draws: int = Field(10, ge=1)
    """Limit of a step: this number times `prompts_per_step` prompts. After that, the batch is filled with groups of
    equal rewards."""


class Algorithm(Config):
    """Settings of all policy-gradient algorithms. Each `kind` is a subclass with its own vetted defaults."""

    kind: str = ""
    """Names the algorithm; docs/algorithms.md has a table of what each kind sets."""
    prompts_per_step: Count = 8
    """Number of prompts in a step (P)."""
    group_size: Count = 8
    """Number of completions per prompt (G); at least 2 if the advantage compares them."""
    advantage: AdvantageConfig = GroupAdvantage()
    """Estimator of how much better a completion was than expected."""
    loss: LossConfig = Clipped()
    """The loss that the policy minimises."""
    clip: Clip = (0.2, 0.2)
    """Limits of the probability ratio: it is clipped to [1 - clip[0], 1 + clip[1]]."""
    max_log_ratio: float | None = Field(20.0, gt=0)
    """Largest absolute log-ratio before exp; larger ones have no gradient. verl, OpenRLHF: 20; TRL: none."""
    kl: Kl = Kl()
    """Penalty on the distance to the frozen reference."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the mean entropy of tokens, which is maximised."""
    reduction: Reduction = "token_mean"
    """How the losses of tokens become one loss. token_mean: their sum / their number in the optimizer step (DAPO).
    sequence_mean: the mean over sequences of the mean over their tokens (GRPO as published). constant: their sum /
    (sequences * `reduction_denominator`) (Dr. GRPO)."""
    reduction_denominator: float | None = Field(None, gt=0)
    """Denominator of the reduction `constant`. None uses `rollout.max_tokens`."""
    old_policy: Literal["trainer", "rollout"] = "trainer"
    """Source of the old log-probabilities in the ratio. trainer: the trainer computes them before the update (decoupled
    PPO, arXiv:2505.24298, if rollouts are stale). rollout: the engine reported them, which saves a forward pass."""
    correction: Correction | None = None
    """Importance weights for the difference between trainer and engine. verl, OpenRLHF: none; TRL: mask_sequences."""
    shaping: Shaping = Shaping()
    """Changes of the rewards before advantages are computed."""
    dynamic_sampling: DynamicSampling | None = None
    """Replace groups whose rewards are all equal. None: train on all groups."""
    mask_truncated: bool = False
    """Leave completions that the token limit cut off out of the loss (DAPO's overlong filtering)."""
    update_epochs: Count = 1
    """Number of passes over the batch of a step."""
    minibatches: Count = 1
    """Number of optimizer steps in a pass; must divide `prompts_per_step`."""

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        """Fills sections that are partly given, like `kl: {coefficient: 0.01}`, with the defaults of this kind."""
        if not isinstance(given, dict):
            return given
        return {name: _filled(value, cls._default_section(name)) for name, value in given.items()}

    @classmethod
    def _default_section(cls, name: str) -> Mapping[str, Any] | None:
        field = cls.model_fields.get(name)
        return field.default.model_dump() if field is not None and isinstance(field.default, Config) else None

    @property
    def optimizer_steps(self) -> int:
        """Number of optimizer steps on a batch."""
        return self.update_epochs * self.minibatches

    @property
    def needs_old_logprobs(self) -> bool:
        """True if the trainer must compute log-probabilities before the update.

        The first optimizer step computes them anyway. They are needed earlier for a second optimizer step, and for a KL
        penalty that is computed before the update.
        """
        if self.old_policy == "rollout":
            return False
        needs_kl = self.kl.coefficient > 0 and (self.kl.place == "reward" or self.kl.control.kind == "adaptive")
        return self.optimizer_steps > 1 or needs_kl


def _filled(given: Any, default: Mapping[str, Any] | None) -> Any:
    """Adds missing keys from `default`, unless the mapping names another `kind`."""
    if not isinstance(given, Mapping) or default is None:
        return given
    if given.get("kind", default.get("kind")) != default.get("kind"):
        return given
    return {**default, **{key: _filled(value, _mapping(default.get(key))) for key, value in given.items()}}


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None
