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

CHANGES = (1e-4, 0.4, 5.0, 20.0)
"""Largest changes of a log-probability for which a loss is checked: within every clip, as in most runs, and as after a
divergence or with a token that the engine and the trainer see very differently."""


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
    """Checks a user's loss on three short sequences: at ratio 1 and at ratios near and far from it, whole and in parts.

    Args:
        path: see `custom_surrogate`.
        options: see `custom_surrogate`.
        clip: see `custom_surrogate`.
        max_log_ratio: see `custom_surrogate`.

    Raises:
        ConfigError: it returned no loss for each token, or one that is not finite or without a gradient; or the loss of
            a token depends on other sequences or on how they are numbered, so that micro-batches would change the
            gradient.
    """
    surrogate = custom_surrogate(path, options, clip=clip, max_log_ratio=max_log_ratio)
    _, gradient_N = _checked(path, surrogate, torch.zeros(8), "before the policy has changed, so at ratio 1")
    if not gradient_N.any():
        raise ConfigError(
            f"{path}: the loss has no gradient with respect to logprobs_N at ratio 1; nothing would be learnt"
        )
    learns = False
    for change in CHANGES:
        for sign in (1.0, -1.0):
            shift_N = sign * change * torch.tensor([0.6, -1.0, -0.2, 1.0, -0.4, 0.3, -0.7, 0.1])
            when = f"after log-probabilities have changed by up to {change:g}"
            learns |= bool(_checked(path, surrogate, shift_N, when)[1].any())
    if not learns:
        raise ConfigError(
            f"{path}: the loss has a gradient with respect to logprobs_N only at ratio 1; of each batch, only the "
            "first optimizer step would teach anything"
        )


def _checked(path: str, surrogate: Surrogate, shift_N: torch.Tensor, when: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss and its gradient for log-probabilities that have changed by `shift_N`, in three sequences.

    Raises:
        ConfigError: they are not finite, or differ if the loss is called with only some of the sequences.
    """
    # As in a micro-batch: the numbers of sequences are those of the whole batch, with gaps and in any order.
    row_N = torch.tensor([5, 5, 5, 2, 2, 9, 9, 9])
    advantages_N = torch.tensor([1.0, 1.0, 1.0, -0.5, -0.5, 0.25, 0.25, 0.25])
    lower_N = -0.1 - 0.5 * torch.arange(8.0)
    logprobs_N, old_N = lower_N + shift_N.clamp(max=0), lower_N - shift_N.clamp(min=0)  # both are below 0
    loss_N, gradient_N = _called(surrogate, logprobs_N, old_N, advantages_N, row_N)
    for what, values_N in (("loss", loss_N), ("gradient", gradient_N)):
        if not values_N.isfinite().all():
            raise ConfigError(f"{path}: the {what} is {_numbers(values_N)} {when}; return finite numbers")
    for is_in_N in (row_N == 5, row_N != 5, row_N < 0):
        renumbered_N = row_N[is_in_N].unique(return_inverse=True)[1]
        part = _called(surrogate, logprobs_N[is_in_N], old_N[is_in_N], advantages_N[is_in_N], renumbered_N)
        for what, whole_N, part_N in zip(("loss", "gradient"), (loss_N, gradient_N), part, strict=True):
            if not torch.allclose(part_N, whole_N[is_in_N], rtol=1e-4, atol=1e-6):
                raise ConfigError(
                    f"{path}: the {what} of a token depends on other sequences, or on how sequences are numbered: "
                    f"{_numbers(whole_N[is_in_N])} with the others and {_numbers(part_N)} without them; a micro-batch "
                    "has only some sequences, so return the loss of each token by itself, and leave sums and means to "
                    "algorithm.reduction"
                )
    return loss_N, gradient_N


def _called(surrogate: Surrogate, logprobs_N: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of each token, and the gradient of their sum with respect to `logprobs_N`: 0 without one."""
    logprobs_N = logprobs_N.clone().requires_grad_()
    loss_N, _ = surrogate(logprobs_N, *others)
    gradient_N = torch.autograd.grad(loss_N.sum(), logprobs_N, allow_unused=True)[0] if loss_N.requires_grad else None
    return loss_N.detach(), torch.zeros_like(logprobs_N) if gradient_N is None else gradient_N.detach()


def _numbers(values_N: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values_N.tolist()]
