import math
import re
from functools import partial
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from ray_rl.algorithms import credit
from ray_rl.algorithms.advantages import (
    center_by_group,
    gpg_advantages,
    leave_one_out,
)
from ray_rl.algorithms.credit import OverGroup, completion_advantages
from ray_rl.config import advantages as advantage_settings
from ray_rl.errors import ConfigError
from tests.golden import reference, tensors
from tests.test_architecture import ROOT

NAN = float("nan")


def advantages(function, rewards_PG, **settings):
    """What a batch with these rewards gets, nan for a completion that was not scored."""
    estimator = OverGroup("tested", partial(function, **settings))
    return completion_advantages(estimator, rewards_PG, ~rewards_PG.isnan())


def test_one_right_of_two_is_plus_and_minus_one():
    advantages_PG = advantages(center_by_group, torch.tensor([[1.0, 0.0]]), divide_by_std=True)
    assert advantages_PG[0].tolist() == pytest.approx([0.5 / (0.5 + 1e-6), -0.5 / (0.5 + 1e-6)])


def test_the_standard_deviation_is_the_population_one():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert advantages(center_by_group, rewards_PG, divide_by_std=True)[0].tolist() == pytest.approx(
        [1, -1, -1, 1], abs=1e-5
    )


def test_without_the_division_the_scale_of_the_rewards_stays():
    rewards_PG = torch.tensor([[4.0, 0.0, 2.0, 2.0]])
    assert advantages(center_by_group, rewards_PG, divide_by_std=False)[0].tolist() == [2.0, -2.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [0.9, 0.1, 1e7, -1 / 3])
@pytest.mark.parametrize("size", [2, 6, 61])
def test_equal_rewards_give_exactly_zero_advantage(value, size):
    assert advantages(center_by_group, torch.full((1, size), value), divide_by_std=True)[0].tolist() == [0.0] * size


def test_an_unscored_completion_is_left_out_and_gets_zero():
    advantages_PG = advantages(center_by_group, torch.tensor([[3.0, NAN, 1.0]]), divide_by_std=False)
    assert advantages_PG[0].tolist() == [1.0, 0.0, -1.0]


def test_a_group_with_fewer_than_two_scores_gets_zero():
    rewards_PG = torch.tensor([[NAN, 0.7, NAN], [NAN, NAN, NAN]])
    assert advantages(center_by_group, rewards_PG, divide_by_std=True).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("divide_by_std", [True, False])
@pytest.mark.parametrize("rewards_PG", [tensors.REWARDS_PG, tensors.REWARDS_UNSCORED_PG])
def test_agrees_with_the_slow_reference(rewards_PG, divide_by_std):
    expected = [reference.group_advantage(row, divide_by_std, 1e-6) for row in rewards_PG.tolist()]
    actual = advantages(center_by_group, rewards_PG, divide_by_std=divide_by_std)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_the_order_of_groups_and_of_completions_does_not_matter():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.25, NAN], [0.3, 0.3, 0.9, 2.0], [5.0, 5.0, 5.0, 5.0]])
    advantages_PG = advantages(center_by_group, rewards_PG, divide_by_std=True)
    groups, completions = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    shuffled_PG = advantages(center_by_group, rewards_PG[groups][:, completions], divide_by_std=True)
    assert torch.equal(shuffled_PG, advantages_PG[groups][:, completions])


def test_a_constant_added_to_the_rewards_changes_nothing():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.5, 0.25]])
    shifted_PG = advantages(center_by_group, rewards_PG + 1024.0, divide_by_std=True)
    torch.testing.assert_close(
        shifted_PG, advantages(center_by_group, rewards_PG, divide_by_std=True), rtol=0, atol=1e-6
    )


def test_the_standard_deviation_may_be_that_of_the_whole_batch():
    rewards_PG = torch.tensor([[1.0, 0.0], [3.0, 3.0], [2.0, NAN]])
    # 1, 0, 3, 3, 2: mean 1.8, squares 0.64 + 3.24 + 1.44 + 1.44 + 0.04 = 6.8, / 5 and / 4.
    for ddof, variance in ((0, 1.36), (1, 1.7)):
        result_PG = advantages(center_by_group, rewards_PG, divide_by_std=True, std_of="batch", ddof=ddof, eps=1e-6)
        half = 0.5 / (math.sqrt(variance) + 1e-6)
        torch.testing.assert_close(result_PG, torch.tensor([[half, -half], [0.0, 0.0], [0.0, 0.0]]))


def test_a_group_of_one_is_an_error_that_names_the_setting():
    with pytest.raises(ValueError, match=r"shape \(3, 1\).*algorithm.group_size >= 2"):
        advantages(center_by_group, torch.zeros(3, 1), divide_by_std=True)


def test_an_infinite_reward_is_an_error_that_names_the_completion():
    with pytest.raises(ValueError, match="completion 2 of prompt 1 is -inf"):
        advantages(center_by_group, torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -math.inf]]), divide_by_std=True)


def test_the_sample_standard_deviation_on_request():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    expected = 0.5 / math.sqrt(1 / 3)
    assert advantages(center_by_group, rewards_PG, divide_by_std=True, ddof=1)[0, 0].item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("function", [leave_one_out, partial(center_by_group, divide_by_std=True)])
def test_a_singleton_keeps_its_score_on_request(function):
    rewards_PG = torch.tensor([[NAN, 0.7, NAN], [2.0, 2.0, NAN]])
    assert advantages(function, rewards_PG)[0].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(
        advantages(function, rewards_PG, singleton="score"), torch.tensor([[0.0, 0.7, 0.0], [0.0, 0.0, 0.0]])
    )
    assert advantages(function, torch.tensor([[3.0], [NAN]]), singleton="score").tolist() == [[3.0], [0.0]]


def test_leave_one_out_compares_with_the_mean_of_the_others():
    assert advantages(leave_one_out, torch.tensor([[6.0, 0.0, 3.0]]))[0].tolist() == [4.5, -4.5, 0.0]


@pytest.mark.parametrize("rewards_PG", [tensors.REWARDS_PG, tensors.REWARDS_UNSCORED_PG])
def test_leave_one_out_agrees_with_the_slow_reference(rewards_PG):
    expected = torch.tensor([reference.leave_one_out(row) for row in rewards_PG.tolist()])
    torch.testing.assert_close(advantages(leave_one_out, rewards_PG), expected, rtol=1e-6, atol=1e-6)


def test_leave_one_out_of_a_group_of_one_is_an_error():
    with pytest.raises(ValueError, match=r"algorithm\.group_size >= 2"):
        advantages(leave_one_out, torch.zeros(3, 1))


def test_gpg_scales_up_for_the_groups_that_teach_nothing():
    rewards_PG = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert advantages(gpg_advantages, rewards_PG, divisor=2.0).tolist() == [[0.75, -0.75], [0.0, 0.0], [0.0, 0.0]]
    assert advantages(gpg_advantages, rewards_PG[1:]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_standard_deviation_of_something_else_is_refused():
    with pytest.raises(AssertionError):
        advantages(center_by_group, torch.tensor([[1.0, 0.0]]), divide_by_std=True, std_of="step")


class TestTheBoundary:
    def test_no_estimator_sees_nan_or_pushes_a_completion_that_was_not_scored(self):
        seen = []

        def careless(scores_PG, is_scored_PG):
            seen.append((scores_PG.tolist(), is_scored_PG.tolist()))
            return scores_PG / scores_PG  # nan wherever nothing was scored

        assert advantages(careless, torch.tensor([[2.0, NAN, -4.0], [NAN, NAN, 8.0]])).tolist() == [
            [1, 0, 1],
            [0, 0, 1],
        ]
        assert seen == [([[2.0, 0.0, -4.0], [0.0, 0.0, 8.0]], [[True, False, True], [False, False, True]])]

    def test_the_dtype_is_that_of_the_scores(self):
        assert advantages(lambda scores_PG, _: scores_PG.double(), torch.ones(2, 2)).dtype == torch.float32

    def test_an_advantage_that_is_not_finite_is_an_error_that_names_estimator_completion_and_scores(self):
        with pytest.raises(
            ValueError, match=r"^tested: .* returned inf for completion 0 of prompt 1, .*\[0\.0, None, 2\.5\]"
        ):
            advantages(lambda scores_PG, _: 1 / scores_PG, torch.tensor([[1.0, 2.0, 3.0], [0.0, NAN, 2.5]]))

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            (torch.zeros(2), r"torch.float32 with the shape \(2,\) for scores of the shape \(2, 3\)"),
            (torch.zeros(2, 3, dtype=torch.int64), r"torch.int64 with the shape \(2, 3\)"),
            ([[0.0] * 3] * 2, "tested: the estimator returned a list"),
        ],
    )
    def test_anything_but_one_number_for_each_score_is_an_error_that_names_the_estimator(self, returned, words):
        with pytest.raises(ConfigError, match=words):
            advantages(lambda scores_PG, is_scored_PG: returned, torch.zeros(2, 3))


def test_the_example_of_contributing_leaves_out_what_was_not_scored():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = page.split("**An estimator**")[1].split("```python\n")[1].split("```")[0]
    _, function, config, case, test = re.split(r"^# (?:ray_rl|tests)/.*\n", block, flags=re.MULTILINE)
    names = dict(vars(advantage_settings)) | {"torch": torch, "Tensor": torch.Tensor, "credit": credit}
    before = get_args(get_args(names["AdvantageConfig"])[0])
    exec(function + config + test, names)
    names["test_the_median_is_that_of_the_scored_completions_of_the_group"]()
    assert get_args(get_args(names["AdvantageConfig"])[0]) == (*before, names["MedianAdvantage"])
    names["advantages"] = SimpleNamespace(MedianAdvantage=names["MedianAdvantage"])
    exec(f"def _estimator(advantage):\n    match advantage:\n{case}", names)
    estimator = names["_estimator"](names["MedianAdvantage"]())
    rewards_PG = torch.tensor([[5.0, NAN, 1.0, 2.0], [NAN, 3.0, 1.0, NAN], [NAN, NAN, NAN, NAN]])
    advantages_PG = completion_advantages(estimator, rewards_PG, ~rewards_PG.isnan())
    assert advantages_PG.tolist() == [[3.0, 0.0, -1.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0] * 4]
    assert estimator.name == "median"


def test_what_an_estimator_writes_into_its_arguments_changes_nothing():
    def writes(scores_PG, is_scored_PG):
        is_scored_PG.fill_(False)
        return scores_PG.mul_(2.0)

    scores_PG, is_scored_PG = torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])
    assert completion_advantages(OverGroup("m:f", writes), scores_PG, is_scored_PG).tolist() == [[2.0, 6.0]]
    assert (scores_PG.tolist(), is_scored_PG.tolist()) == ([[1.0, 3.0]], [[True, True]])


def test_advantages_have_no_gradient():
    estimator = OverGroup("m:f", lambda scores_PG, is_scored_PG: scores_PG.requires_grad_() * 2.0)
    advantages_PG = completion_advantages(estimator, torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]))
    assert advantages_PG.numpy().tolist() == [[2.0, 6.0]]
