"""Checks the functions of users that `algorithm` names, before anything is started. Loads no torch in this process."""

from __future__ import annotations

import math
from importlib.util import find_spec

from ray_rl.config.advantages import CustomAdvantage
from ray_rl.config.algorithm import Algorithm
from ray_rl.config.losses import CustomLoss
from ray_rl.isolation.checking import check_function


def uncalled_functions(algorithm: Algorithm) -> list[str]:
    """Returns the keys of the functions that cannot be called here, because torch is not installed."""
    keys = [
        f"algorithm.{name}.function"
        for name, section in (("advantage", algorithm.advantage), ("loss", algorithm.loss))
        if isinstance(section, CustomAdvantage | CustomLoss)
    ]
    return keys if keys and find_spec("torch") is None else []


def check_functions(algorithm: Algorithm) -> None:
    """Calls the advantage and the loss of a user on a small batch that is made up, each in a process of its own.

    Raises:
        ConfigError: a function is missing, raises, hangs, or does not return what docs/algorithms.md asks for.
    """
    if uncalled_functions(algorithm):
        return
    advantage, loss = algorithm.advantage, algorithm.loss
    if isinstance(advantage, CustomAdvantage):
        check_function(
            advantage.function,
            key="algorithm.advantage.function",
            check="ray_rl.training.custom:check_advantages",
            kwargs={"options": advantage.options, "group_size": algorithm.group_size},
        )
    if isinstance(loss, CustomLoss):
        bound = math.inf if algorithm.max_log_ratio is None else algorithm.max_log_ratio
        check_function(
            loss.function,
            key="algorithm.loss.function",
            check="ray_rl.training.custom:check_surrogate",
            kwargs={"options": loss.options, "clip": algorithm.clip, "max_log_ratio": bound},
        )
