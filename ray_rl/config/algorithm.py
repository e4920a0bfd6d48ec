"""The settings that every policy-gradient algorithm shares. `ray_rl.config.online` has one class per algorithm."""

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
    """The coefficient stays."""

    kind: Literal["fixed"] = "fixed"


class AdaptiveKl(Config):
    """The coefficient follows the divergence (Ziegler et al., arXiv:1909.08593)."""

    kind: Literal["adaptive"] = "adaptive"
    target: float = Field(0.1, gt=0)
    """Divergence to hold, in nats per token. verl: 0.1."""
    horizon: float = Field(10_000.0, gt=0)
    """Sequences over which a sustained error of 0.2 or more changes the coefficient by a fifth. verl, OpenRLHF: 10000.
    """


class Kl(Config):
    """Penalty on the distance to a frozen reference. A reference role exists if the coefficient is > 0."""

    coefficient: float = Field(0.0, ge=0)
    """0.001 in verl's examples; OpenRLHF: 0.01 in the reward; TRL: 0.05 in the reward for PPO and RLOO."""
    place: Literal["loss", "reward"] = "loss"
    """loss: added to the loss of each token (GRPO). reward: taken from the reward, of each token where the estimator
    looks at tokens (PPO, REINFORCE++), else their sum from that of the completion (RLOO)."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman 2020, "Approximating KL divergence". k3 = exp(r - l) - (r - l) - 1: unbiased and never negative. In the
    reward k1 = l - r is usual."""
    control: FixedKl | AdaptiveKl = Field(FixedKl(), discriminator="kind")
    max_log_ratio: float | None = Field(20.0, gt=0)
    """k3: bound of r - l before exp. verl: 20; OpenRLHF, TRL: none."""
    bound: float | None = Field(None, gt=0)
    """Each token's estimate is clipped to +- this. verl: 10 for k3; OpenRLHF: 10; TRL: none."""
    k2_gradient: bool = False
    """In the loss: the value of the estimator with the gradient of k2 (verl's suffix "+")."""


class Shaping(Config):
    """What is done to the reward of a completion before advantages."""

    per_token: bool = False
    """Divide by the number of tokens of the completion."""
    whiten: bool = False
    """Divide by the standard deviation over the batch (ddof 1), keeping the mean (TRL's whiten_rewards)."""
    overlong_share: float = Field(0.0, ge=0, lt=1)
    """DAPO's soft punishment: over this last share of rollout.max_tokens the reward falls linearly. The paper: 0.2."""
    overlong_penalty: float = Field(1.0, ge=0)
    """By so much at the limit."""
    clip: float | None = Field(None, gt=0)
    """Scores are clipped to +- this, after the baseline of their group where there is one. OpenRLHF: 10."""


class DynamicSampling(Config):
    """Draw again for groups whose rewards are all equal (DAPO, arXiv:2503.14476, section 3.2)."""

    max_draws: int = Field(10, ge=1)
    """Times prompts_per_step prompts that a step may draw. After that, the batch is filled with what was drawn."""


class Algorithm(Config):
    """What all policy-gradient algorithms share. Each `kind` is a subclass whose defaults are its vetted numbers."""

    kind: str = ""
    """Names the algorithm; docs/algorithms.md has a table of what each kind sets."""
    prompts_per_step: Count = 8
    """P."""
    group_size: Count = 8
    """G, completions per prompt; at least 2 where they are compared."""
    advantage: AdvantageConfig = GroupAdvantage()
    """How much better a completion was than expected."""
    loss: LossConfig = Clipped()
    """What the policy minimises."""
    clip: Clip = (0.2, 0.2)
    """The ratio is clipped to [1 - clip[0], 1 + clip[1]]."""
    max_log_ratio: float | None = Field(20.0, gt=0)
    """Bound of the log-ratio before exp, without gradient beyond it. verl, OpenRLHF: 20; TRL: none."""
    kl: Kl = Kl()
    """Penalty on the distance to the frozen reference."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the mean token entropy, maximised."""
    reduction: Reduction = "token_mean"
    """token_mean: sum over all tokens of the optimizer step / their number (DAPO). sequence_mean: mean over sequences
    of the mean over tokens (GRPO as published). constant: sum / (sequences * reduction_denominator) (Dr. GRPO)."""
    reduction_denominator: float | None = Field(None, gt=0)
    """Of `constant`. None: rollout.max_tokens."""
    old_policy: Literal["trainer", "rollout"] = "trainer"
    """Whose log-probabilities the ratio compares with. trainer: computed before the update (decoupled PPO,
    arXiv:2505.24298, if rollouts are stale). rollout: those that the engine reported, which saves a pass."""
    correction: Correction | None = None
    """Importance weights of the trainer's policy against the engine's. verl, OpenRLHF: none; TRL: mask_sequences."""
    shaping: Shaping = Shaping()
    dynamic_sampling: DynamicSampling | None = None
    """Draw again for groups whose rewards are all equal. None: train on what was drawn."""
    mask_truncated: bool = False
    """Completions cut off by the token limit are left out of the loss (DAPO's overlong filtering)."""
    update_epochs: Count = 1
    """Passes over the batch of a step."""
    minibatches: Count = 1
    """Optimizer steps a pass; divides prompts_per_step."""

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        """Fills sections that are given in part from the defaults of this kind: `kl: {coefficient: 0.01}`."""
        if not isinstance(given, dict):
            return given
        return {name: _filled(value, cls._default_section(name)) for name, value in given.items()}

    @classmethod
    def _default_section(cls, name: str) -> Mapping[str, Any] | None:
        field = cls.model_fields.get(name)
        return field.default.model_dump() if field is not None and isinstance(field.default, Config) else None

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps a batch."""
        return self.update_epochs * self.minibatches

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the trainer computes log-probabilities apart from the update.

        The policy before it is the policy of its first optimizer step, which computes them anyway: they are needed for
        a second step, or for a KL before the update.
        """
        if self.old_policy == "rollout":
            return False
        needs_kl = self.kl.coefficient > 0 and (self.kl.place == "reward" or self.kl.control.kind == "adaptive")
        return self.optimizer_steps > 1 or needs_kl


def _filled(given: Any, default: Mapping[str, Any] | None) -> Any:
    """Adds the keys of `default` that are missing; a mapping that names another `kind` stays as it is."""
    if not isinstance(given, Mapping) or default is None:
        return given
    if given.get("kind", default.get("kind")) != default.get("kind"):
        return given
    return {**default, **{key: _filled(value, _mapping(default.get(key))) for key, value in given.items()}}


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None
