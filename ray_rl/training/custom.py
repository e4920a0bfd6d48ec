"""Advantages and losses of users, by import path, and the checks of them on a small batch that is made up.

The checks run in a process of their own before anything is started: `ray_rl.preflight.functions`.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ray_rl.algorithms.credit import OverGroup, completion_advantages
from ray_rl.algorithms.surrogates import Surrogate, users_surrogate
from ray_rl.errors import ConfigError
from ray_rl.isolation.importing import import_function


def custom_surrogate(
    path: str, options: Mapping[str, Any], *, clip: tuple[float, float], max_log_ratio: float
) -> Surrogate:
    """Returns a user's loss with its settings.

    Args:
        path: import path of the function.
        options: further keywords.
        clip: `algorithm.clip`, passed if the function has a parameter of this name.
        max_log_ratio: `algorithm.max_log_ratio`, passed if the function has a parameter of this name; inf for none.

    Raises:
        ConfigError: no such module or function.
    """
    function = import_function(path)
    parameters = inspect.signature(function).parameters
    settings = {"clip": clip, "max_log_ratio": max_log_ratio}
    taken = {name: value for name, value in settings.items() if name in parameters}
    return partial(users_surrogate, name=path, function=partial(function, **options, **taken))


def check_advantages(path: str, *, options: Mapping[str, Any], group_size: int) -> None:
    """Checks a user's estimator on groups with all kinds of scores: unequal, equal, some missing, one alone, none.

    Raises:
        ConfigError: it did not return a finite number for each score.
    """
    scores_PG = torch.arange(5.0 * group_size).sin().view(5, group_size)
    scores_PG[1] = 0.5
    is_scored_PG = torch.ones_like(scores_PG, dtype=torch.bool)
    is_scored_PG[2, group_size // 2] = is_scored_PG[3, 1:] = is_scored_PG[4] = False
    completion_advantages(OverGroup(path, partial(import_function(path), **options)), scores_PG, is_scored_PG)


def check_surrogate(path: str, *, options: Mapping[str, Any], clip: tuple[float, float], max_log_ratio: float) -> None:
    """Checks a user's loss on three short sequences: before and after the policy has moved, whole and in parts.

    Args:
        path: see `custom_surrogate`.
        options: see `custom_surrogate`.
        clip: see `custom_surrogate`.
        max_log_ratio: see `custom_surrogate`.

    Raises:
        ConfigError: it returned no loss for each token, or one that is not finite or without a gradient; or the loss of
            a token depends on other sequences, so that micro-batches would change the gradient.
    """
    surrogate = custom_surrogate(path, options, clip=clip, max_log_ratio=max_log_ratio)
    row_N = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    old_N, advantages_N = -0.1 - torch.arange(8.0), torch.tensor([1.0, -0.5, 0.25])[row_N]
    logprobs_N = old_N.clone().requires_grad_()
    loss_N, _ = surrogate(logprobs_N, old_N, advantages_N, row_N)
    _check_finite(path, loss_N, "before the policy has changed, so at ratio 1")
    gradient_N = torch.autograd.grad(loss_N.sum(), logprobs_N, allow_unused=True)[0] if loss_N.requires_grad else None
    if gradient_N is None or not gradient_N.any():
        raise ConfigError(
            f"{path}: the loss has no gradient with respect to logprobs_N at ratio 1; nothing would be learnt"
        )
    _check_finite(path, gradient_N, "for the gradient at ratio 1")
    moved_N = old_N + 0.4 * torch.arange(8.0).cos()
    whole_N, _ = surrogate(moved_N, old_N, advantages_N, row_N)
    _check_finite(path, whole_N, "after log-probabilities have changed by up to 0.4")
    for is_in_N in (row_N == 0, row_N != 0, row_N < 0):
        part_N, _ = surrogate(moved_N[is_in_N], old_N[is_in_N], advantages_N[is_in_N], row_N[is_in_N])
        if not torch.allclose(part_N, whole_N[is_in_N], rtol=1e-4, atol=1e-6):
            raise ConfigError(
                f"{path}: the loss of a token depends on other sequences: {_numbers(whole_N[is_in_N])} with them and "
                f"{_numbers(part_N)} without them; a micro-batch has only some sequences, so return the loss of each "
                "token by itself, and leave sums and means to algorithm.reduction"
            )


def _check_finite(path: str, values_N: torch.Tensor, when: str) -> None:
    if not values_N.isfinite().all():
        raise ConfigError(f"{path}: the loss returned {_numbers(values_N)} {when}; return finite numbers")


def _numbers(values_N: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values_N.tolist()]
