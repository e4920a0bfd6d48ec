"""The algorithms that learn from rollouts of the policy: one class per `kind`, with its vetted defaults.

A field that a class does not set keeps the default of `Algorithm`.
"""

from typing import Literal

from ray_rl.config.advantages import (
    AdvantageConfig,
    Gae,
    GpgAdvantage,
    GroupAdvantage,
    LeaveOneOut,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from ray_rl.config.algorithm import Algorithm, Clip, Count, DynamicSampling, Kl, Reduction, Shaping
from ray_rl.config.losses import Cispo, Gspo, LossConfig, PolicyGradient, Sapo


class PpoAlgorithm(Algorithm):
    """PPO for language models: one completion per prompt, KL in the reward, and values of a critic.

    Sources: arXiv:1707.06347; for language models arXiv:2203.02155. KL 0.05 with k1 and 4 epochs are TRL's; lam 0.95.
    """

    kind: Literal["ppo"] = "ppo"
    group_size: Count = 1
    advantage: AdvantageConfig = Gae(gamma=1.0, lam=0.95)
    kl: Kl = Kl(coefficient=0.05, place="reward", estimator="k1")
    update_epochs: Count = 4


class GrpoAlgorithm(Algorithm):
    """GRPO as published: mean over sequences, KL 0.04 in the loss.

    Source: arXiv:2402.03300, section 4.1 and equation 3; the coefficient is that of section 4.2.
    """

    kind: Literal["grpo"] = "grpo"
    advantage: AdvantageConfig = GroupAdvantage(divide_by_std=True)
    reduction: Reduction = "sequence_mean"
    kl: Kl = Kl(coefficient=0.04, place="loss", estimator="k3")


class DrGrpoAlgorithm(Algorithm):
    """Dr. GRPO: no division by the standard deviation or by the length, and no KL.

    Source: arXiv:2503.20783, section 3.2.
    """

    kind: Literal["dr_grpo"] = "dr_grpo"
    advantage: AdvantageConfig = GroupAdvantage(divide_by_std=False)
    reduction: Reduction = "constant"


class DapoAlgorithm(Algorithm):
    """DAPO: a higher upper clip, mean over tokens, dynamic sampling, and a soft punishment of long completions.

    Source: arXiv:2503.14476, section 3; the buffer of the soft punishment is 4096 of 20480 tokens there.
    """

    kind: Literal["dapo"] = "dapo"
    advantage: AdvantageConfig = GroupAdvantage(divide_by_std=True)
    clip: Clip = (0.2, 0.28)
    reduction: Reduction = "token_mean"
    dynamic_sampling: DynamicSampling | None = DynamicSampling()
    shaping: Shaping = Shaping(overlong_share=0.2)


class RlooAlgorithm(Algorithm):
    """RLOO: the mean of the other completions is the baseline, and KL is in the reward of the completion.

    Source: arXiv:2402.14740. KL 0.05 and the clipped ratio, which matters if there are several updates, are TRL's.
    """

    kind: Literal["rloo"] = "rloo"
    advantage: AdvantageConfig = LeaveOneOut()
    reduction: Reduction = "sequence_mean"
    kl: Kl = Kl(coefficient=0.05, place="reward", estimator="k1")


class ReinforcePlusPlusAlgorithm(Algorithm):
    """REINFORCE++: one completion per prompt, and KL in the reward of each token.

    Source: arXiv:2501.03262. KL 0.01 is OpenRLHF's.
    """

    kind: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    group_size: Count = 1
    advantage: AdvantageConfig = ReinforcePlusPlus()
    kl: Kl = Kl(coefficient=0.01, place="reward", estimator="k1")


class ReinforcePlusPlusBaselineAlgorithm(Algorithm):
    """REINFORCE++ with the group's mean as baseline, and KL in the loss.

    Source: arXiv:2501.03262. KL 0.01 with k2 is OpenRLHF's.
    """

    kind: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    advantage: AdvantageConfig = ReinforcePlusPlusBaseline()
    kl: Kl = Kl(coefficient=0.01, place="loss", estimator="k2")


class GspoAlgorithm(Algorithm):
    """GSPO: one ratio per sequence, with limits that fit it.

    Source: arXiv:2507.18071, section 5.1.
    """

    kind: Literal["gspo"] = "gspo"
    advantage: AdvantageConfig = GroupAdvantage(divide_by_std=True)
    loss: LossConfig = Gspo()
    clip: Clip = (3e-4, 4e-4)
    reduction: Reduction = "sequence_mean"


class CispoAlgorithm(Algorithm):
    """CISPO: REINFORCE weighted by the clipped ratio; the lower limit has no effect.

    Source: arXiv:2506.13585, section 3.1.
    """

    kind: Literal["cispo"] = "cispo"
    advantage: AdvantageConfig = GroupAdvantage(divide_by_std=True)
    loss: LossConfig = Cispo()
    clip: Clip = (1.0, 4.0)
    reduction: Reduction = "token_mean"


class SapoAlgorithm(Algorithm):
    """SAPO: a soft gate replaces the clip.

    Source: arXiv:2511.20347.
    """

    kind: Literal["sapo"] = "sapo"
    advantage: AdvantageConfig = GroupAdvantage(divide_by_std=True)
    loss: LossConfig = Sapo()
    reduction: Reduction = "sequence_mean"


class GpgAlgorithm(Algorithm):
    """GPG: a policy gradient without ratio and KL, scaled up to make up for groups of equal rewards.

    Source: arXiv:2504.02546.
    """

    kind: Literal["gpg"] = "gpg"
    advantage: AdvantageConfig = GpgAdvantage()
    loss: LossConfig = PolicyGradient()
    reduction: Reduction = "token_mean"


OnlineKinds = (
    PpoAlgorithm
    | GrpoAlgorithm
    | DrGrpoAlgorithm
    | DapoAlgorithm
    | RlooAlgorithm
    | ReinforcePlusPlusAlgorithm
    | ReinforcePlusPlusBaselineAlgorithm
    | GspoAlgorithm
    | CispoAlgorithm
    | SapoAlgorithm
    | GpgAlgorithm
)
