"""The critic's loss, and a measure of its predictions."""

import torch
from torch import Tensor


def clipped_value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Returns half the pessimistic squared error: max((V - G)^2, (V_old + clamp(V - V_old, -clip, clip) - G)^2) / 2.

    Source: PPO's reference implementation, openai/baselines ppo2 (not in the paper).

    Args:
        values_N: float [N], differentiable.
        old_values_N: float [N], before the update.
        returns_N: float [N], the targets.
        clip: the most that a value may differ from its old one. None: the plain squared error. verl and
            OpenRLHF: 0.5; TRL: 0.2.

    Returns:
        Loss [N], and bool [N]: the bound decides the loss, so that the token has no gradient.
    """
    free_N = (values_N - returns_N).square()
    if clip is None:
        return 0.5 * free_N, torch.zeros_like(values_N, dtype=torch.bool)
    near_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    bounded_N = (near_N - returns_N).square()
    return 0.5 * torch.maximum(free_N, bounded_N), bounded_N > free_N


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Returns the share of the returns' variance that the critic explains: 1 - var(G - V) / var(G), at most 1.

    Args:
        values: float, any shape.
        returns: the same shape.
        mask: bool, the same shape.

    Returns:
        nan if the returns do not vary: there was nothing to explain.
    """
    targets, errors = returns[mask].double(), (returns - values)[mask].double()
    if len(targets) == 0 or targets.amax() == targets.amin():
        return float("nan")
    return 1.0 - (errors.var(correction=0) / targets.var(correction=0)).item()
