import numpy as np
import pytest

from ray_rl.algorithms.reduce import reduction_count, token_weights

LENGTHS_R = np.array([9, 5, 0, 4, 6, 1])


def test_token_mean_weighs_every_token_alike_and_counts_tokens():
    assert token_weights(LENGTHS_R, "token_mean").tolist() == [1, 1, 0, 1, 1, 1]
    assert reduction_count(LENGTHS_R, "token_mean") == 25.0


def test_sequence_mean_weighs_every_sequence_alike_and_leaves_out_the_empty_one():
    weights_R = token_weights(np.array([4, 0, 2]), "sequence_mean")
    assert weights_R.tolist() == [0.25, 0.0, 0.5]
    assert weights_R.dtype == np.float32
    assert reduction_count(LENGTHS_R, "sequence_mean") == 5.0


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_weights_sum_to_the_count(reduction):
    assert (token_weights(LENGTHS_R, reduction) * LENGTHS_R).sum() == pytest.approx(
        reduction_count(LENGTHS_R, reduction)
    )


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
def test_counts_of_the_parts_sum_to_the_count_of_the_whole(reduction):
    parts = reduction_count(LENGTHS_R[:2], reduction) + reduction_count(LENGTHS_R[2:], reduction)
    assert parts == reduction_count(LENGTHS_R, reduction)


def test_a_constant_denominator_weighs_every_token_alike_and_counts_the_empty_sequence_too():
    weights_R = token_weights(LENGTHS_R, "constant", denominator=8)
    assert weights_R.tolist() == [0.125, 0.125, 0.0, 0.125, 0.125, 0.125]
    assert reduction_count(LENGTHS_R, "constant") == 6.0


def test_an_unknown_reduction_is_refused():
    with pytest.raises(AssertionError):
        token_weights(LENGTHS_R, "median")
    with pytest.raises(AssertionError):
        reduction_count(LENGTHS_R, "median")
