import math

import numpy as np
import pytest

from ray_rl.algorithms.ensemble import combined

KINDS = [("mean", 0.0), ("min", 0.0), ("mean_minus_std", 1.0), ("mean_minus_std", 0.5)]
SCORES_MR = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, 0.5], [5.0, 5.0, 0.5]], np.float32)


def test_the_mean_of_the_models():
    assert combined(SCORES_MR, "mean").tolist() == [3.0, 1.0, 0.5]


def test_the_lowest_of_the_models():
    assert combined(SCORES_MR, "min").tolist() == [1.0, -2.0, 0.5]


def test_the_mean_less_k_population_standard_deviations():
    # Deviations (-2, 0, 2) and (-3, -1, 4): variances 8 / 3 and 26 / 3, by the number of models.
    expected = [3.0 - 2.0 * math.sqrt(8 / 3), 1.0 - 2.0 * math.sqrt(26 / 3), 0.5]
    assert combined(SCORES_MR, "mean_minus_std", k=2.0).tolist() == pytest.approx(expected, rel=1e-6)


def test_k_of_zero_is_the_mean():
    assert combined(SCORES_MR, "mean_minus_std", k=0.0).tolist() == combined(SCORES_MR, "mean").tolist()


@pytest.mark.parametrize(("how", "k"), KINDS)
@pytest.mark.parametrize("models", [1, 3, 5])
def test_models_that_agree_keep_their_score_exactly(how, k, models):
    scores_R = np.array([0.1, -7.3, 1e-8, 3e5], np.float32)
    result_R = combined(np.tile(scores_R, (models, 1)), how, k=k)
    assert result_R.dtype == np.float32
    assert result_R.tolist() == scores_R.tolist()


def test_close_scores_of_a_large_scale_keep_their_spread():
    # In float32 the squares of the deviations of scores near 10000 would be lost in rounding.
    scores_MR = np.array([[10000.0], [10000.002]], np.float32)
    spread = (float(scores_MR[1, 0]) - 10000.0) / 2
    result = combined(scores_MR, "mean_minus_std", k=1000.0)[0]
    assert result == pytest.approx(10000.0 + spread - 1000.0 * spread, abs=1e-3)


@pytest.mark.parametrize(("how", "k"), KINDS)
def test_the_order_of_the_models_does_not_matter(how, k):
    assert combined(SCORES_MR[::-1], how, k=k).tolist() == pytest.approx(combined(SCORES_MR, how, k=k).tolist())


@pytest.mark.parametrize(("how", "k"), KINDS)
def test_a_missing_score_is_not_hidden(how, k):
    scores_MR = SCORES_MR.copy()
    scores_MR[1, 2] = np.nan
    assert np.isnan(combined(scores_MR, how, k=k)).tolist() == [False, False, True]


@pytest.mark.parametrize("shape", [(0, 3), (3,)])
def test_scores_without_a_row_for_each_model_are_refused(shape):
    with pytest.raises(ValueError, match="one row a reward model is needed"):
        combined(np.zeros(shape, np.float32), "mean")


def test_a_kind_without_a_case_is_our_mistake():
    with pytest.raises(AssertionError):
        combined(SCORES_MR, "median")
