"""Estimators along a sequence: rewards per token, discounted returns, generalised advantages.

Arrays are [R, T] over positions of the completion. A gap in the mask (what a tool answered) is not an action: time
does not advance in it.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor


def token_rewards(
    scores_R: Tensor,
    mask_RT: Tensor,
    *,
    kl_RT: Tensor | None = None,
    kl_coefficient: float = 0.0,
    score_bound: float | None = None,
) -> Tensor:
    """Returns rewards of single tokens: -kl_coefficient * KL at each one, and the score on the last one.

    Source: InstructGPT, arXiv:2203.02155, equation 2.

    Args:
        scores_R: float [R], after any shaping over the group.
        mask_RT: bool [R, T]; an empty row gets no score.
        kl_RT: float [R, T], an estimate against the reference; read inside the mask alone.
        kl_coefficient: >= 0.
        score_bound: scores are clipped to +- this first. OpenRLHF: 10, after shaping; others: None.

    Returns:
        [R, T] in the dtype of the scores; 0 outside the mask.

    Raises:
        ValueError: a rollout with loss tokens has no score (nan).
    """
    has_tokens_R = mask_RT.any(1)
    unscored = (scores_R.isnan() & has_tokens_R).nonzero()[:, 0].tolist()
    if unscored:
        raise ValueError(f"rollouts {unscored} have no score; take them out of the loss mask or score them")
    bounded_R = scores_R if score_bound is None else scores_R.clamp(-score_bound, score_bound)
    is_last_RT = mask_RT & (mask_RT.flip(1).cumsum(1).flip(1) == 1)
    rewards_RT = torch.where(is_last_RT, bounded_R[:, None], 0.0)
    if kl_RT is not None:
        rewards_RT = rewards_RT - torch.where(mask_RT, kl_coefficient * kl_RT, 0.0)
    return rewards_RT


def discounted_returns(rewards_RT: Tensor, mask_RT: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Returns the reward-to-go G_t = r_t + gamma * G_next; next is the next position inside the mask.

    Args:
        rewards_RT: float [R, T], read inside the mask alone.
        mask_RT: bool [R, T].
        gamma: discount per token, in [0, 1].

    Returns:
        [R, T]; 0 outside the mask.
    """
    returns_RT = torch.zeros_like(rewards_RT)
    ahead_R = torch.zeros_like(rewards_RT[:, 0])
    for t in reversed(range(mask_RT.shape[1])):
        ahead_R = torch.where(mask_RT[:, t], rewards_RT[:, t] + gamma * ahead_R, ahead_R)
        returns_RT[:, t] = ahead_R
    return returns_RT.masked_fill(~mask_RT, 0.0)


def gae(
    rewards_RT: Tensor,
    values_RT: Tensor,
    mask_RT: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    gaps: Literal["carry", "zero"] = "carry",
) -> tuple[Tensor, Tensor]:
    """Returns generalised advantages: A_t = d_t + gamma * lam * A_next, d_t = r_t + gamma * V_next - V_t.

    Source: GAE, arXiv:1506.02438, equation 16; after the last action V = 0. lam 0.95 is TRL's; verl and OpenRLHF: 1.

    Args:
        rewards_RT: float [R, T], read inside the mask alone.
        values_RT: float [R, T], the value of the state before each token; read inside the mask alone.
        mask_RT: bool [R, T].
        gamma: discount per token, in [0, 1].
        lam: weight of longer returns, in [0, 1].
        gaps: carry: next is the next position inside the mask (verl). zero: next is the next position, and in a gap
            r = V = 0 (OpenRLHF), so that a gap of k ends the bootstrap and discounts by (gamma * lam)^k.

    Returns:
        Advantages, not whitened, and returns A + V, the critic's targets; both [R, T] and 0 outside the mask.
    """
    rewards_RT, values_RT = (each.masked_fill(~mask_RT, 0.0) for each in (rewards_RT, values_RT))
    match gaps:
        case "carry":
            is_step_RT = mask_RT
        case "zero":
            is_step_RT = torch.ones_like(mask_RT)
        case _:
            assert_never(gaps)
    advantages_RT = torch.zeros_like(values_RT)
    next_value_R = ahead_R = torch.zeros_like(values_RT[:, 0])
    for t in reversed(range(mask_RT.shape[1])):
        delta_R = rewards_RT[:, t] + gamma * next_value_R - values_RT[:, t]
        ahead_R = torch.where(is_step_RT[:, t], delta_R + gamma * lam * ahead_R, ahead_R)
        next_value_R = torch.where(is_step_RT[:, t], values_RT[:, t], next_value_R)
        advantages_RT[:, t] = ahead_R
    advantages_RT = advantages_RT.masked_fill(~mask_RT, 0.0)
    return advantages_RT, advantages_RT + values_RT
