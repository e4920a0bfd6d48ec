"""The functions of examples/new_algorithm by hand. tests/system/e2e/test_examples.py trains with them."""

import math

import pytest
import torch

from examples.new_algorithm.algorithm import advantages, surrogate
from ray_rl.algorithms.credit import OverGroup, completion_advantages


def test_advantages_are_relative_to_the_mean_of_what_was_scored():
    scores_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 9.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    is_scored_PG = torch.tensor([[True] * 4, [True, False, True, True], [True] * 4])
    advantages_PG = completion_advantages(OverGroup("example", advantages), scores_PG, is_scored_PG)
    # Means 1/4, 2/3 and 0.
    assert advantages_PG[0].tolist() == [3.0, -1.0, -1.0, -1.0]
    assert advantages_PG[1].tolist() == pytest.approx([0.5, 0.0, 0.5, -1.0])
    assert advantages_PG[2].tolist() == [0.0] * 4


def test_the_loss_tapers_bad_completions_by_their_ratio_and_leaves_good_ones_alone():
    logprobs_N = torch.tensor([-3.0, -2.0, -1.0, -1.0, -1.0], requires_grad=True)
    old_N = torch.tensor([-1.0, -1.0, -3.0, -2.0, -5.0])
    advantages_N, row_N = torch.tensor([-2.0, -2.0, -2.0, -2.0, 3.0]), torch.tensor([0, 0, 1, 1, 2])
    loss_N, is_clipped_N = surrogate(logprobs_N, old_N, advantages_N, row_N, largest=1.0)
    # Log-ratios of the completions: -3, +3 and +4.
    assert loss_N.tolist() == pytest.approx([-6.0 * math.exp(-3), -4.0 * math.exp(-3), -2.0, -2.0, 3.0])
    assert is_clipped_N.tolist() == [False, False, True, True, False]
    loss_N.sum().backward()
    assert logprobs_N.grad.tolist() == pytest.approx([2 * math.exp(-3), 2 * math.exp(-3), 2.0, 2.0, -3.0])
