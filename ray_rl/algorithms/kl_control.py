"""How the KL coefficient moves."""

from __future__ import annotations

from typing import assert_never

from ray_rl.config.algorithm import AdaptiveKl, FixedKl, Kl


class KlControl:
    """The coefficient in force, from step to step."""

    def __init__(self, config: Kl) -> None:
        """Starts at `coefficient`."""
        self.coefficient = config.coefficient
        self._control = config.control

    def observe(self, kl: float, *, samples: int) -> None:
        """Moves the coefficient after a step of so many sequences; `kl` as for `adapted_kl_coefficient`."""
        match self._control:
            case FixedKl():
                return
            case AdaptiveKl(target=target, horizon=horizon):
                self.coefficient = adapted_kl_coefficient(
                    self.coefficient, kl, target=target, horizon=horizon, samples=samples
                )
            case _:
                assert_never(self._control)


def adapted_kl_coefficient(
    coefficient: float, observed_kl: float, *, target: float, horizon: float, samples: int, bound: float = 0.2
) -> float:
    """The next coefficient: beta * (1 + clip(KL / target - 1, +-bound) * samples / horizon).

    Source: Ziegler et al., arXiv:1909.08593. verl and OpenRLHF: horizon 10000.

    Args:
        coefficient: beta of the last step, >= 0.
        observed_kl: mean over the step's sequences of their mean per token (verl, OpenRLHF), in nats.
        target: > 0, same unit.
        horizon: > 0, sequences over which a sustained error of `bound` changes beta by that share.
        samples: sequences of the step, P * G.
        bound: largest relative error that counts.

    Raises:
        ValueError: the coefficient would turn negative: the horizon is too short for the step.
    """
    error = min(max(observed_kl / target - 1.0, -bound), bound)
    factor = 1.0 + error * samples / horizon
    if factor < 0:
        raise ValueError(
            f"horizon={horizon} is too short for {samples} sequences a step: the KL coefficient would turn negative; "
            f"set it above {bound * samples}"
        )
    return coefficient * factor
