"""Turns a batch with rewards into a batch with advantages: shaping, KL in the reward, the estimator.

A new estimator is one function in `advantages.py` or `returns.py`, one class in `config/advantages.py` and one `case`
in `training/configured.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ray_rl.algorithms.described import described
from ray_rl.algorithms.kl import KlEstimate
from ray_rl.algorithms.returns import token_rewards
from ray_rl.errors import ConfigError
from ray_rl.types import TrainBatch

Whitening = Callable[[Tensor, Tensor], Tensor]
"""`whiten` with its settings."""


@dataclass(frozen=True, slots=True)
class OverGroup:
    """An estimator that compares the completions of a prompt: one advantage a completion."""

    name: str
    """Names the estimator in errors."""
    advantages: Callable[[Tensor, Tensor], Tensor]
    """Scores [P, G], finite, and bool [P, G], which completions were scored, to advantages [P, G]; see `advantages.py`.
    """
    whiten: Whitening | None = None
    """Normalises the advantages over the batch afterwards."""


@dataclass(frozen=True, slots=True)
class OverTokens:
    """An estimator over the rewards of single tokens."""

    advantages: Callable[[Tensor, Tensor], Tensor]
    """Rewards [R, T] and loss mask [R, T] to advantages [R, T]."""
    whiten: Whitening | None = None


@dataclass(frozen=True, slots=True)
class OverValues:
    """An estimator over the rewards of single tokens and the values of the critic."""

    advantages: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """Rewards [R, T], values [R, T] and loss mask [R, T] to advantages [R, T] and the critic's targets [R, T]."""
    whiten: Whitening | None = None
    """The critic's targets are taken before it."""


Estimator = OverGroup | OverTokens | OverValues

Credit = Callable[[TrainBatch, float], TrainBatch]
"""A batch with rewards, and the KL coefficient of the step, to the batch with advantages and returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditSettings:
    """How `credit` estimates advantages."""

    estimator: Estimator
    shape: Callable[[Tensor, Tensor], Tensor]
    """Scores [R] and sampled tokens [R] to scores [R]: `shaped` with its settings."""
    bound: float | None
    """Scores are clipped to +- this, after the baseline of their group where there is one. None: not at all."""
    reward_kl: KlEstimate | None
    """The KL that is taken from the reward. None: the penalty belongs to the loss."""


def credit(batch: TrainBatch, kl_coefficient: float, *, settings: CreditSettings) -> TrainBatch:
    """Returns the batch with advantages.

    Args:
        batch: a batch with rewards, and with the log-probabilities and values that KL and estimator need.
        kl_coefficient: the coefficient of this step.
        settings: shaping, KL and estimator.

    Returns:
        The batch with `advantages_RT`, float32 and 0 outside the loss mask; with `returns_RT` if there is a critic; and
        with `kl_coefficient` for the loss. Completions without a score get advantage 0 from their group, and leave the
        loss mask where advantages are estimated token by token.

    Raises:
        ValueError: as `completion_advantages`.
    """
    scores_R = settings.shape(torch.tensor(batch.rewards_R), torch.tensor(batch.sampled_R))
    kl, kl_RT = settings.reward_kl, None
    if kl is not None and kl_coefficient > 0:
        kl_RT = kl_coefficient * kl_of_batch(batch, kl)
    match settings.estimator:
        case OverGroup() as estimator:
            credited = _by_completion(estimator, batch, scores_R, kl_RT, bound=settings.bound)
        case estimator:
            credited = _by_token(estimator, batch, scores_R, kl_RT, bound=settings.bound)
    return replace(credited, kl_coefficient=kl_coefficient if kl is None else 0.0)


def completion_advantages(estimator: OverGroup, scores_PG: Tensor, is_scored_PG: Tensor) -> Tensor:
    """Returns the advantages of an estimator, and 0 for completions that were not scored, whatever it returns for them.

    This is the one place that calls an estimator over groups: no score behind it is nan.

    Args:
        estimator: the estimator.
        scores_PG: float [P, G]; not read where a completion was not scored.
        is_scored_PG: bool [P, G].

    Returns:
        [P, G] in the dtype of the scores, finite.

    Raises:
        ValueError: a score is infinite.
        ConfigError: the estimator returned something else than finite numbers [P, G].
    """
    scores_PG = scores_PG.masked_fill(~is_scored_PG, 0.0)
    if not scores_PG.isfinite().all():
        prompt, completion = (~scores_PG.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"the reward of completion {completion} of prompt {prompt} is {scores_PG[prompt, completion].item()}; "
            "rewards must be finite, or None for no opinion"
        )
    # A function of a user may write into its arguments, or return a value with a gradient.
    advantages_PG = estimator.advantages(scores_PG.clone(), is_scored_PG.clone())
    if (
        not isinstance(advantages_PG, Tensor)
        or advantages_PG.shape != scores_PG.shape
        or not advantages_PG.is_floating_point()
    ):
        raise ConfigError(
            f"{estimator.name}: the estimator returned {described(advantages_PG)} for scores of the shape "
            f"{tuple(scores_PG.shape)}; return one floating-point number for each score, [P, G]"
        )
    advantages_PG = advantages_PG.detach().masked_fill(~is_scored_PG, 0.0)
    if not advantages_PG.isfinite().all():
        prompt, completion = (~advantages_PG.isfinite()).nonzero()[0].tolist()
        scored = zip(scores_PG[prompt].tolist(), is_scored_PG[prompt].tolist(), strict=True)
        raise ConfigError(
            f"{estimator.name}: the estimator returned {advantages_PG[prompt, completion].item()} for completion "
            f"{completion} of prompt {prompt}, in a group with the scores "
            f"{[round(score, 6) if is_scored else None for score, is_scored in scored]}; return a finite number for "
            "each of these scores"
        )
    return advantages_PG.to(scores_PG.dtype)


def kl_of_batch(batch: TrainBatch, kl: KlEstimate) -> Tensor:
    """Returns float32 [R, T], KL(policy before the update || reference) estimated per token; 0 outside the mask."""
    assert batch.old_logprobs_RT is not None, "a KL needs the policy's log-probabilities"
    assert batch.reference_logprobs_RT is not None, "a KL needs the reference's log-probabilities"
    kl_RT = kl(torch.tensor(batch.old_logprobs_RT), torch.tensor(batch.reference_logprobs_RT))
    return kl_RT.masked_fill(~torch.tensor(batch.loss_mask_RT), 0.0)


def mean_kl(batch: TrainBatch, kl: KlEstimate) -> float:
    """Returns the mean over the completions with loss tokens of their mean KL per token, for `KlControl.observe`."""
    mask_RT = torch.tensor(batch.loss_mask_RT)
    tokens_R = mask_RT.sum(1)
    means_R = kl_of_batch(batch, kl).double().sum(1) / tokens_R.clamp(min=1)
    return float(means_R[tokens_R > 0].mean()) if bool((tokens_R > 0).any()) else 0.0


def _by_token(
    estimator: OverTokens | OverValues,
    batch: TrainBatch,
    scores_R: Tensor,
    kl_RT: Tensor | None,
    *,
    bound: float | None,
) -> TrainBatch:
    """Applies an estimator over the rewards of single tokens. A completion without a score leaves the loss."""
    mask_RT = torch.tensor(batch.loss_mask_RT) & ~scores_R.isnan()[:, None]
    rewards_RT = token_rewards(scores_R, mask_RT, kl_RT=kl_RT, kl_coefficient=1.0, score_bound=bound).float()
    if batch.token_rewards_RT is not None:
        rewards_RT = rewards_RT + torch.tensor(batch.token_rewards_RT).masked_fill(~mask_RT, 0.0)
    if isinstance(estimator, OverValues):
        assert batch.old_values_RT is not None, "the estimator needs the critic's values"
        advantages_RT, returns_RT = estimator.advantages(rewards_RT, torch.tensor(batch.old_values_RT), mask_RT)
        batch = replace(batch, returns_RT=returns_RT.numpy())
    else:
        advantages_RT = estimator.advantages(rewards_RT, mask_RT)
    advantages_RT = _whitened(advantages_RT, mask_RT, estimator.whiten)
    return replace(batch, loss_mask_RT=mask_RT.numpy(), advantages_RT=advantages_RT.numpy())


def _by_completion(
    estimator: OverGroup, batch: TrainBatch, scores_R: Tensor, kl_RT: Tensor | None, *, bound: float | None
) -> TrainBatch:
    """Applies an estimator over groups. Rewards of tokens count as their sum.

    A KL in the reward is that of the whole completion: RLOO, arXiv:2402.14740, section 2.
    """
    mask_RT = torch.from_numpy(batch.loss_mask_RT)
    if batch.token_rewards_RT is not None:
        scores_R = scores_R + torch.tensor(batch.token_rewards_RT).masked_fill(~mask_RT, 0.0).sum(1)
    if kl_RT is not None:
        scores_R = scores_R - kl_RT.sum(1)
    scores_PG = scores_R.view(-1, batch.group_size)
    is_scored_PG = ~scores_PG.isnan()
    advantages_PG = completion_advantages(estimator, scores_PG, is_scored_PG)
    if bound is not None:
        advantages_PG = advantages_PG.clamp(-bound, bound)
    credited_RT = mask_RT & is_scored_PG.view(-1, 1)
    advantages_RT = torch.where(credited_RT, advantages_PG.view(-1, 1), 0.0)
    return replace(batch, advantages_RT=_whitened(advantages_RT, credited_RT, estimator.whiten).float().numpy())


def _whitened(advantages_RT: Tensor, mask_RT: Tensor, whitening: Whitening | None) -> Tensor:
    return advantages_RT if whitening is None else whitening(advantages_RT, mask_RT)
