"""The functions of `ray_rl/algorithms/` with the settings of a configuration.

No other module knows both: a new kind of estimator, loss or correction has its `case` here.
"""

import math
from functools import partial
from typing import assert_never

from ray_rl.algorithms import credit, preference, surrogates
from ray_rl.algorithms.advantages import center_by_group, gpg_advantages, leave_one_out
from ray_rl.algorithms.importance import importance_weights
from ray_rl.algorithms.kl import KlEstimate, kl_estimate
from ray_rl.algorithms.policy_loss import Correction, PolicyLoss
from ray_rl.algorithms.returns import discounted_returns, gae
from ray_rl.algorithms.shaping import shaped
from ray_rl.algorithms.whiten import whiten
from ray_rl.config import advantages, correction, losses, offline
from ray_rl.config.algorithm import Algorithm, Kl
from ray_rl.isolation.importing import import_function
from ray_rl.training.custom import custom_surrogate
from ray_rl.training.objectives.preference import PairLoss

PairKinds = offline.Dpo | offline.Ipo | offline.Orpo | offline.SimPo
"""The algorithms with a loss over pairs of answers."""


def credit_fn(algorithm: Algorithm, *, max_tokens: int) -> credit.Credit:
    """Returns the function that adds advantages to a batch; `max_tokens` is the limit of a completion."""
    shaping = algorithm.shaping
    settings = credit.CreditSettings(
        estimator=_estimator(algorithm.advantage),
        shape=partial(
            shaped,
            max_tokens=max_tokens,
            overlong_share=shaping.overlong_share,
            overlong_penalty=shaping.overlong_penalty,
            per_token=shaping.per_token,
            rescale=shaping.whiten,
        ),
        bound=shaping.clip,
        reward_kl=kl_of(algorithm.kl) if algorithm.kl.place == "reward" else None,
    )
    return partial(credit.credit, settings=settings)


def kl_of(kl: Kl) -> KlEstimate:
    """Returns the estimate of the KL to the reference."""
    return partial(
        kl_estimate,
        estimator=kl.estimator,
        max_log_ratio=_bound(kl.max_log_ratio),
        bound=kl.bound,
        k2_gradient=kl.k2_gradient,
    )


def policy_loss_of(algorithm: Algorithm) -> PolicyLoss:
    """Returns the settings of the policy's loss."""
    return PolicyLoss(
        surrogate=_surrogate(algorithm),
        correction=None if algorithm.correction is None else correction_of(algorithm.correction),
        kl=kl_of(algorithm.kl),
        entropy_coefficient=algorithm.entropy_coefficient,
    )


def correction_of(settings: correction.Correction) -> Correction:
    """Returns the importance weights of the trainer's policy against the engine's."""
    match settings:
        case correction.TruncateTokens(low=low, high=high):
            return partial(importance_weights, over="token", low=low, high=high, outside="truncate")
        case correction.MaskTokens(low=low, high=high):
            return partial(importance_weights, over="token", low=low, high=high, outside="mask")
        case correction.TruncateSequences(high=high, over=over):
            return partial(importance_weights, over=over, low=0.0, high=high, outside="truncate")
        case correction.MaskSequences(low=low, high=high, over=over):
            return partial(importance_weights, over=over, low=low, high=high, outside="mask")
        case _:
            assert_never(settings)


def pair_loss_of(algorithm: PairKinds) -> PairLoss:
    """Returns the loss of pairs."""
    match algorithm:
        case offline.Dpo():
            return partial(
                preference.dpo_loss,
                preference.Dpo(
                    beta=algorithm.beta,
                    label_smoothing=algorithm.label_smoothing,
                    smoothing=algorithm.smoothing,
                    reference_free=algorithm.reference_free,
                    likelihood=_likelihood(algorithm.likelihood),
                ),
            )
        case offline.Ipo():
            return partial(preference.ipo_loss, preference.Ipo(beta=algorithm.beta, over=algorithm.over))
        case offline.Orpo():
            return partial(preference.orpo_loss, preference.Orpo(beta=algorithm.beta, over=algorithm.over))
        case offline.SimPo():
            likelihood = _likelihood(algorithm.likelihood)
            return partial(
                preference.simpo_loss,
                preference.SimPo(beta=algorithm.beta, margin=algorithm.margin, likelihood=likelihood),
            )
        case _:
            assert_never(algorithm)


def kto_of(algorithm: offline.Kto) -> preference.Kto:
    """Returns the settings of KTO's loss."""
    return preference.Kto(
        beta=algorithm.beta,
        desirable_weight=algorithm.desirable_weight,
        undesirable_weight=algorithm.undesirable_weight,
    )


def _likelihood(settings: offline.Likelihood | None) -> preference.Likelihood | None:
    if settings is None:
        return None
    return preference.Likelihood(coefficient=settings.coefficient, over=settings.over)


def _estimator(advantage: advantages.AdvantageConfig) -> credit.Estimator:
    match advantage:
        case advantages.GroupAdvantage():
            center = partial(
                center_by_group,
                divide_by_std=advantage.divide_by_std,
                eps=advantage.eps,
                ddof=advantage.ddof,
                singleton=advantage.singleton,
                std_of=advantage.std_of,
            )
            return credit.OverGroup(advantage.kind, center)
        case advantages.LeaveOneOut():
            others = partial(leave_one_out, singleton=advantage.singleton)
            return credit.OverGroup(advantage.kind, others, _whitening(advantage.whiten))
        case advantages.ReinforcePlusPlusBaseline():
            mean = partial(center_by_group, divide_by_std=False)
            return credit.OverGroup(advantage.kind, mean, _whitening(advantage.whiten))
        case advantages.GpgAdvantage():
            return credit.OverGroup(advantage.kind, partial(gpg_advantages, divisor=advantage.divisor))
        case advantages.CustomAdvantage(function=path):
            users = partial(import_function(path), **advantage.options)
            return credit.OverGroup(path, users, _whitening(advantage.whiten))
        case advantages.ReinforcePlusPlus():
            return credit.OverTokens(partial(discounted_returns, gamma=advantage.gamma), _whitening(advantage.whiten))
        case advantages.Gae():
            estimate = partial(gae, gamma=advantage.gamma, lam=advantage.lam, gaps=advantage.gaps)
            return credit.OverValues(estimate, _whitening(advantage.whiten))
        case _:
            assert_never(advantage)


def _whitening(norm: advantages.Whiten | None) -> credit.Whitening | None:
    if norm is None:
        return None
    return partial(
        whiten, divide_by_std=norm.divide_by_std, ddof=norm.ddof, eps=norm.eps, eps_is_floor=norm.eps_is_floor
    )


def _surrogate(algorithm: Algorithm) -> surrogates.Surrogate:
    clip, bound = algorithm.clip, _bound(algorithm.max_log_ratio)
    match algorithm.loss:
        case losses.Clipped() as loss:
            return partial(
                surrogates.clipped_surrogate,
                clip=clip,
                dual_clip=loss.dual_clip,
                ratio_cap=loss.ratio_cap,
                max_log_ratio=bound,
            )
        case losses.Gspo() as loss:
            return partial(surrogates.gspo_surrogate, clip=clip, gradient=loss.gradient, max_log_ratio=bound)
        case losses.Cispo():
            low, high = clip
            return partial(surrogates.cispo_surrogate, bounds=(1.0 - low, 1.0 + high), max_log_ratio=bound)
        case losses.Sapo() as loss:
            return partial(
                surrogates.sapo_surrogate,
                temperature_positive=loss.temperature_positive,
                temperature_negative=loss.temperature_negative,
                max_log_ratio=bound,
            )
        case losses.PolicyGradient():
            return surrogates.gpg_surrogate
        case losses.CustomLoss() as loss:
            return custom_surrogate(loss.function, loss.options, clip=clip, max_log_ratio=bound)
        case _:
            assert_never(algorithm.loss)


def _bound(max_log_ratio: float | None) -> float:
    return math.inf if max_log_ratio is None else max_log_ratio
