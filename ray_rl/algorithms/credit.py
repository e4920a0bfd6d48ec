"""From a batch with rewards to a batch with advantages: shaping, KL in the reward, the estimator.

A new estimator is one function in `advantages.py`, one class in `config/advantages.py` and one `case` here.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor

from ray_rl.algorithms.advantages import center_by_group, gpg_advantages, leave_one_out
from ray_rl.algorithms.kl import kl_estimate
from ray_rl.algorithms.returns import discounted_returns, gae, token_rewards
from ray_rl.algorithms.shaping import shaped
from ray_rl.algorithms.whiten import whiten
from ray_rl.config.advantages import (
    Gae,
    GpgAdvantage,
    GroupAdvantage,
    LeaveOneOut,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Whiten,
)
from ray_rl.config.algorithm import Algorithm, Kl
from ray_rl.types import TrainBatch

OverGroup = GroupAdvantage | LeaveOneOut | ReinforcePlusPlusBaseline | GpgAdvantage

Credit = Callable[[TrainBatch, float], TrainBatch]
"""A batch with rewards, and the KL coefficient of the step, to the batch with advantages and returns."""


def credit_fn(config: Algorithm, *, max_tokens: int) -> Credit:
    """The estimator that the configuration names, with its shaping and its penalty.

    Returns:
        A function of a batch and of the KL coefficient in force. Its result has `advantages_RT`, float32 and 0 outside
        the loss mask; under `gae`, `returns_RT`; and `kl_coefficient` for the loss. Completions without a score get
        advantage 0 from their group, and leave the loss mask where advantages are estimated token by token.
    """

    def credit(batch: TrainBatch, kl_coefficient: float) -> TrainBatch:
        in_reward = config.kl.place == "reward"
        scores_R = shaped(
            torch.tensor(batch.rewards_R), torch.tensor(batch.sampled_R), config.shaping, max_tokens=max_tokens
        )
        kl_RT = kl_coefficient * kl_of_batch(batch, config.kl) if in_reward and kl_coefficient > 0 else None
        match config.advantage:
            case Gae() | ReinforcePlusPlus() as advantage:
                credited = _by_token(advantage, batch, scores_R, kl_RT, bound=config.shaping.clip)
            case advantage:
                credited = _by_completion(advantage, batch, scores_R, kl_RT, bound=config.shaping.clip)
        return replace(credited, kl_coefficient=0.0 if in_reward else kl_coefficient)

    return credit


def kl_of_batch(batch: TrainBatch, config: Kl) -> Tensor:
    """float32 [R, T], the estimate of KL(policy before the update || reference) at each token; 0 outside the mask."""
    assert batch.old_logprobs_RT is not None, "a KL needs the policy's log-probabilities"
    assert batch.reference_logprobs_RT is not None, "a KL needs the reference's log-probabilities"
    kl_RT = kl_estimate(
        torch.tensor(batch.old_logprobs_RT),
        torch.tensor(batch.reference_logprobs_RT),
        config.estimator,
        max_log_ratio=math.inf if config.max_log_ratio is None else config.max_log_ratio,
        bound=config.bound,
    )
    return kl_RT.masked_fill(~torch.tensor(batch.loss_mask_RT), 0.0)


def mean_kl(batch: TrainBatch, config: Kl) -> float:
    """Mean over the completions that have loss tokens of their mean per token, as `adapted_kl_coefficient` wants it."""
    mask_RT = torch.tensor(batch.loss_mask_RT)
    tokens_R = mask_RT.sum(1)
    means_R = kl_of_batch(batch, config).double().sum(1) / tokens_R.clamp(min=1)
    return float(means_R[tokens_R > 0].mean()) if bool((tokens_R > 0).any()) else 0.0


def _by_token(
    config: Gae | ReinforcePlusPlus, batch: TrainBatch, scores_R: Tensor, kl_RT: Tensor | None, *, bound: float | None
) -> TrainBatch:
    """Estimators over the rewards of single tokens. What was not scored leaves the loss."""
    mask_RT = torch.tensor(batch.loss_mask_RT) & ~scores_R.isnan()[:, None]
    rewards_RT = token_rewards(scores_R, mask_RT, kl_RT=kl_RT, kl_coefficient=1.0, score_bound=bound).float()
    if batch.token_rewards_RT is not None:
        rewards_RT = rewards_RT + torch.tensor(batch.token_rewards_RT).masked_fill(~mask_RT, 0.0)
    if isinstance(config, Gae):
        assert batch.old_values_RT is not None, "gae needs the critic's values"
        values_RT = torch.tensor(batch.old_values_RT)
        advantages_RT, returns_RT = gae(
            rewards_RT, values_RT, mask_RT, gamma=config.gamma, lam=config.lam, gaps=config.gaps
        )
        batch = replace(batch, returns_RT=returns_RT.numpy())
    else:
        advantages_RT = discounted_returns(rewards_RT, mask_RT, gamma=config.gamma)
    advantages_RT = _whitened(advantages_RT, mask_RT, config.whiten)
    return replace(batch, loss_mask_RT=mask_RT.numpy(), advantages_RT=advantages_RT.numpy())


def _by_completion(
    config: OverGroup, batch: TrainBatch, scores_R: Tensor, kl_RT: Tensor | None, *, bound: float | None
) -> TrainBatch:
    """Estimators over groups. Rewards of tokens count as their sum.

    A KL in the reward is that of the whole completion: RLOO, arXiv:2402.14740, section 2.
    """
    mask_RT = torch.tensor(batch.loss_mask_RT)
    if batch.token_rewards_RT is not None:
        scores_R = scores_R + torch.tensor(batch.token_rewards_RT).masked_fill(~mask_RT, 0.0).sum(1)
    if kl_RT is not None:
        scores_R = scores_R - kl_RT.sum(1)
    advantages_PG, norm = _over_group(config, scores_R.view(-1, batch.group_size))
    if bound is not None:
        advantages_PG = advantages_PG.clamp(-bound, bound)
    advantages_RT = torch.where(mask_RT, advantages_PG.view(-1, 1), 0.0)
    return replace(batch, advantages_RT=_whitened(advantages_RT, mask_RT, norm).float().numpy())


def _over_group(config: OverGroup, scores_PG: Tensor) -> tuple[Tensor, Whiten | None]:
    """One advantage a completion, and how to normalise over the batch."""
    match config:
        case GroupAdvantage():
            advantages_PG = center_by_group(
                scores_PG,
                divide_by_std=config.divide_by_std,
                eps=config.eps,
                ddof=config.ddof,
                singleton=config.singleton,
                std_of=config.std_of,
            )
            return advantages_PG, None
        case LeaveOneOut():
            return leave_one_out(scores_PG, singleton=config.singleton), config.whiten
        case ReinforcePlusPlusBaseline():
            return center_by_group(scores_PG, divide_by_std=False), config.whiten
        case GpgAdvantage():
            return gpg_advantages(scores_PG, divisor=config.divisor), None
        case _:
            assert_never(config)


def _whitened(advantages_RT: Tensor, mask_RT: Tensor, norm: Whiten | None) -> Tensor:
    if norm is None:
        return advantages_RT
    return whiten(
        advantages_RT,
        mask_RT,
        divide_by_std=norm.divide_by_std,
        ddof=norm.ddof,
        eps=norm.eps,
        eps_is_floor=norm.eps_is_floor,
    )
