"""Normalisation over the whole batch, not over a micro-batch or a worker's share."""

from typing import Literal

from torch import Tensor


def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    divide_by_std: bool = True,
    ddof: Literal[0, 1] = 1,
    eps: float = 1e-8,
    eps_is_floor: bool = False,
) -> Tensor:
    """Returns the values inside the mask with mean 0 and variance 1: (x - mean) / sqrt(var + eps).

    Computed in float64. Equal values give exactly 0. Implementations disagree; the defaults are those of verl and of
    TRL's PPO, and OpenRLHF is `ddof=0, eps_is_floor=True`.

    Args:
        values: float, any shape: advantages [R, T] or rewards [R].
        mask: bool, the same shape.
        shift_mean: False puts the mean back afterwards (TRL's `whiten_rewards`).
        divide_by_std: False only centres.
        ddof: 1 is the unbiased variance. A single value has variance 0.
        eps: added to the variance.
        eps_is_floor: the variance is at least eps instead.

    Returns:
        The same shape and dtype; 0 outside the mask.
    """
    inside = values.double().masked_fill(~mask, 0.0)
    count = mask.sum()
    mean = inside.sum() / count.clamp(min=1)
    whitened = (inside - mean).masked_fill(~mask, 0.0)
    if divide_by_std:
        variance = whitened.square().sum() / (count - ddof).clamp(min=1)
        whitened = whitened * (variance.clamp(min=eps) if eps_is_floor else variance + eps).rsqrt()
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0.0).to(values.dtype)
