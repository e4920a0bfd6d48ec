from functools import partial

import pytest
import torch

from ray_rl.algorithms.shaping import overlong_fraction, rescaled
from ray_rl.algorithms.shaping import shaped as shaped_by

NAN = float("nan")
LENGTHS_R = torch.tensor([10, 80, 90, 100])
NOTHING = {"overlong_share": 0.0, "overlong_penalty": 1.0, "per_token": False, "rescale": False}
shaped = partial(shaped_by, max_tokens=100, **NOTHING)


def test_the_reward_falls_linearly_over_the_last_fifth_of_the_limit():
    assert overlong_fraction(LENGTHS_R, max_tokens=100, share=0.2).tolist() == [0.0, 0.0, 0.5, 1.0]


def test_the_punishment_at_the_limit_is_the_penalty():
    scores_R = shaped(torch.ones(4), LENGTHS_R, overlong_share=0.2, overlong_penalty=3.0)
    assert scores_R.dtype == torch.float32
    assert scores_R.tolist() == [1.0, 1.0, -0.5, -2.0]


def test_a_score_may_be_divided_by_the_length():
    scores_R = shaped(torch.tensor([1.0, 2.0, NAN, 5.0]), LENGTHS_R, per_token=True)
    assert scores_R[[0, 1, 3]].tolist() == pytest.approx([0.1, 0.025, 0.05])
    assert scores_R[2].isnan()


def test_whitening_keeps_the_mean_and_leaves_unscored_completions_alone():
    # 1, 2, 6: mean 3, unbiased variance (4 + 1 + 9) / 2 = 7.
    scores_R = shaped(torch.tensor([1.0, 2.0, NAN, 6.0]), LENGTHS_R, rescale=True)
    assert scores_R[[0, 1, 3]].tolist() == pytest.approx([3 - 2 / 7**0.5, 3 - 1 / 7**0.5, 3 + 3 / 7**0.5])
    assert scores_R[2].isnan()


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [NAN, 4.0], [NAN], []])
def test_scores_that_do_not_vary_stay_as_they_are(scores):
    torch.testing.assert_close(rescaled(torch.tensor(scores)), torch.tensor(scores), equal_nan=True)


def test_without_shaping_the_scores_are_the_same():
    scores_R = torch.tensor([1.0, NAN])
    assert shaped(scores_R, LENGTHS_R[:2]) is scores_R
