"""How far the scores of a reward model can be trusted: calibration, the influence of length, and an interval."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Number of bins of equal width between the confidences 1/2 and 1."""
Z_95 = 1.96
"""Standard deviations of a normal distribution that hold 95% of it."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The pairs whose confidence is in one range."""

    low: float
    """The range is [low, low + 1 / 20), and contains 1 in the last bin."""
    pairs: int
    confidence: float
    """Mean confidence of the pairs."""
    accuracy: float
    """Share of the pairs whose chosen answer has the larger score."""


def reliability(margins_J: NDArray[np.floating]) -> list[Bin]:
    """Returns the bins that have pairs: where the model is calibrated, accuracy equals confidence.

    The confidence of a pair is sigmoid(|m|), the probability of the answer that the model prefers under Bradley-Terry.
    Source: Guo et al. 2017, arXiv:1706.04599, section 2, with the preferred answer as the predicted class.

    Args:
        margins_J: score of the chosen answer minus that of the rejected one, finite.
    """
    confidence_J = 1.0 / (1.0 + np.exp(-np.abs(margins_J.astype(np.float64))))
    place_J = np.minimum(((confidence_J - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    found = []
    for place in range(BINS):
        inside_J = place_J == place
        if inside_J.any():
            accuracy, confidence = float((margins_J[inside_J] > 0).mean()), float(confidence_J[inside_J].mean())
            found.append(Bin(0.5 + place / (2 * BINS), int(inside_J.sum()), confidence, accuracy))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """Returns the expected calibration error: the mean of |accuracy - confidence| over pairs, by their bins.

    Raises:
        ValueError: there are no pairs.
    """
    pairs = sum(each.pairs for each in bins)
    if pairs == 0:
        raise ValueError("no pairs; the calibration of a reward model needs held-out pairs (data.held_out)")
    return sum(each.pairs * abs(each.accuracy - each.confidence) for each in bins) / pairs


def length_correlation(margins_J: NDArray[np.floating], longer_J: NDArray[np.integer]) -> float | None:
    """Returns Pearson's correlation of the margin with how many tokens longer the chosen answer is.

    None if one of the two is the same for all pairs.
    """
    if np.ptp(margins_J) == 0 or np.ptp(longer_J) == 0:
        return None
    return float(np.corrcoef(margins_J.astype(np.float64), longer_J.astype(np.float64))[0, 1])


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Returns the 95% confidence interval of a share that was `right` out of `count` > 0 in a sample (Wilson 1927)."""
    share, z2 = right / count, Z_95**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, center - half), min(1.0, center + half)
