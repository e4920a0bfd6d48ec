"""Calibration of reward models, by numbers that were worked out by hand."""

import math

import numpy as np
import pytest

from ray_rl.algorithms.calibration import calibration_error, length_correlation, reliability, wilson_interval


def logit(probability):
    return math.log(probability / (1 - probability))


def test_pairs_are_binned_by_the_confidence_in_the_preferred_answer():
    """Two pairs with confidence 0.62, one of them wrong; one with 0.97, right; one that is certain, wrong."""
    bins = reliability(np.array([logit(0.62), -logit(0.62), logit(0.97), -40.0], np.float32))
    assert [(each.low, each.pairs, each.accuracy) for each in bins] == [(0.6, 2, 0.5), (0.95, 2, 0.5)]
    assert bins[0].confidence == pytest.approx(0.62, abs=1e-6)
    assert bins[1].confidence == pytest.approx(0.985, abs=1e-6)
    assert calibration_error(bins) == pytest.approx((2 * 0.12 + 2 * 0.485) / 4, abs=1e-6)


def test_a_model_that_is_right_as_often_as_it_is_sure_has_no_calibration_error():
    right, wrong = [logit(0.75)] * 3, [-logit(0.75)]
    assert calibration_error(reliability(np.array(right + wrong))) == pytest.approx(0.0, abs=1e-12)


def test_equal_scores_are_wrong_with_a_confidence_of_one_half():
    (only,) = reliability(np.zeros(3))
    assert (only.low, only.pairs, only.confidence, only.accuracy) == (0.5, 3, 0.5, 0.0)


def test_a_calibration_error_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match="needs held-out pairs"):
        calibration_error([])


def test_the_correlation_with_length_is_pearsons():
    margins, longer = np.array([1.0, 2.0, 4.0]), np.array([0, 1, 5])
    assert length_correlation(margins, longer) == pytest.approx(np.corrcoef(margins, longer)[0, 1])
    assert length_correlation(margins, -2 * longer) == pytest.approx(-np.corrcoef(margins, longer)[0, 1])
    assert length_correlation(margins, np.array([3, 3, 3])) is None
    assert length_correlation(np.zeros(3), longer) is None


def test_the_interval_of_a_share_is_wilsons():
    """8 of 10: center (0.8 + 0.19208) / 1.38416, half width 1.96 * sqrt(0.016 + 0.009604) / 1.38416."""
    assert wilson_interval(8, 10) == pytest.approx((0.490159, 0.943319), abs=1e-5)
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
