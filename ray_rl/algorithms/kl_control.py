"""The KL coefficient, fixed or adapted after each step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Settings of `adapted_kl_coefficient`."""

    target: float
    """Divergence to hold, in nats per token."""
    horizon: float
    """Sequences over which a sustained error moves the coefficient."""


class KlControl:
    """The KL coefficient of the current step."""

    def __init__(self, coefficient: float, adaptive: Adaptive | None = None) -> None:
        """Makes a control that starts at `coefficient`; it never changes if `adaptive` is None."""
        self.coefficient = coefficient
        self._adaptive = adaptive

    def observe(self, kl: float, *, samples: int) -> None:
        """Updates the coefficient after a step of `samples` sequences with the mean divergence `kl`."""
        if self._adaptive is not None:
            self.coefficient = adapted_kl_coefficient(
                self.coefficient, kl, target=self._adaptive.target, horizon=self._adaptive.horizon, samples=samples
            )


def adapted_kl_coefficient(
    coefficient: float, observed_kl: float, *, target: float, horizon: float, samples: int, bound: float = 0.2
) -> float:
    """Returns the next coefficient: beta * (1 + clip(KL / target - 1, +-bound) * samples / horizon).

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
