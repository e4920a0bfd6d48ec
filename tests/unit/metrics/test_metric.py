import math

import pytest

from ray_rl.metrics.metric import Each, EffectiveFraction, Last, Maximum, Mean, Total, reduce_metrics, values_of_each


def test_means_merge_by_total_and_count_not_by_mean_of_means():
    assert reduce_metrics([Mean("a", 10.0, 1), Mean("a", 0.0, 9)]) == {"a": 1.0}


def test_each_kind_reduces_in_its_own_way_and_keeps_the_order_of_first_appearance():
    metrics = [Total("t", 1), Maximum("m", 5), Last("l", 1), Total("t", 2), Maximum("m", 3), Last("l", 9)]
    assert list(reduce_metrics(metrics).items()) == [("t", 3), ("m", 5), ("l", 9)]


def test_a_mean_over_nothing_has_no_key():
    assert reduce_metrics([Mean("a", 0.0, 0), Total("b", 1)]) == {"b": 1}


@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.nan)])
def test_nan_survives_a_maximum(values):
    reduced = reduce_metrics(Maximum("m", value) for value in values)
    assert math.isnan(reduced["m"])


def test_values_of_each_example_are_of_all_parts_and_no_number_of_them_is_reduced():
    parts = [Each("reward", {"a": 1.0}), Mean("m", 1.0, 2), Each("reward", {"b": 2.0}), Each("margin", {"a": 3.0})]
    assert reduce_metrics(parts) == {"m": 0.5}
    assert values_of_each(parts) == {"a": {"reward": 1.0, "margin": 3.0}, "b": {"reward": 2.0}}


def test_one_name_with_two_reductions_is_refused():
    with pytest.raises(ValueError, match="'a' is both Mean and Total"):
        reduce_metrics([Mean("a", 1, 1), Total("a", 1)])


def test_the_effective_fraction_is_that_of_all_weights_together():
    parts = [EffectiveFraction("e", 3.0, 5.0, 2), EffectiveFraction("e", 1.0, 1.0, 1)]
    # Weights 1, 2 and 1: 4^2 / (3 * 6).
    assert reduce_metrics(parts) == {"e": pytest.approx(16 / 18)}
    assert reduce_metrics([EffectiveFraction("e", 5.0, 5.0, 5)]) == {"e": 1.0}
    assert reduce_metrics([EffectiveFraction("e", 0.0, 0.0, 0)]) == {}
