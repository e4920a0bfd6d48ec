import math

import pytest
import torch

from ray_rl.algorithms.importance import importance_weights, over_sequence
from ray_rl.algorithms.policy_loss import LossInputs, policy_loss
from ray_rl.config.algorithm import Algorithm
from ray_rl.config.correction import MaskSequences, MaskTokens, TruncateSequences, TruncateTokens
from ray_rl.training.configured import correction_of, policy_loss_of

RATIOS = torch.tensor([0.25, 1.0, 4.0, 8.0, 0.5])
ROLLOUT_N = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
OLD_N = ROLLOUT_N + RATIOS.log()
ROW_N = torch.tensor([0, 0, 0, 7, 7])
"""Sequences with products 1 and 4, and geometric means 1 and 2."""


@pytest.mark.parametrize(
    ("config", "weights", "bounded"),
    [
        (TruncateTokens(high=2.0), [0.25, 1, 2, 2, 0.5], [0, 0, 1, 1, 0]),
        (TruncateTokens(low=0.5, high=5.0), [0.5, 1, 4, 5, 0.5], [1, 0, 0, 1, 0]),
        (MaskTokens(), [0, 1, 4, 0, 0.5], [1, 0, 0, 1, 0]),
        (TruncateSequences(), [1, 1, 1, 3, 3], [0, 0, 0, 1, 1]),
        (MaskSequences(), [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]),
        (MaskSequences(over="mean"), [1, 1, 1, 2, 2], [0, 0, 0, 0, 0]),
        (MaskSequences(low=1.5, high=9.0), [0, 0, 0, 4, 4], [1, 1, 1, 0, 0]),
    ],
)
def test_weights_by_hand(config, weights, bounded):
    weights_N, is_bounded_N = correction_of(config)(OLD_N, ROLLOUT_N, ROW_N)
    torch.testing.assert_close(weights_N, torch.tensor(weights, dtype=torch.float32))
    if config.kind.endswith("tokens"):
        assert is_bounded_N.tolist() == [bool(each) for each in bounded]


def test_equal_probabilities_weigh_one_and_the_weights_have_no_gradient():
    old_N = ROLLOUT_N.clone().requires_grad_()
    for config in (TruncateTokens(), MaskTokens(), TruncateSequences(), MaskSequences()):
        weights_N, is_bounded_N = correction_of(config)(old_N, ROLLOUT_N, ROW_N)
        assert weights_N.tolist() == [1.0] * 5
        assert not weights_N.requires_grad
        assert not is_bounded_N.any()


def test_a_huge_ratio_is_finite():
    weights_N, _ = correction_of(TruncateSequences(high=1e9))(ROLLOUT_N + 200.0, ROLLOUT_N, ROW_N)
    assert weights_N.tolist() == pytest.approx([math.exp(20.0)] * 5)


def test_sums_and_means_over_sequences():
    values_N = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
    assert over_sequence(values_N, ROW_N, "sum").tolist() == [6, 6, 6, 30, 30]
    assert over_sequence(values_N, ROW_N, "mean").tolist() == [2, 2, 2, 15, 15]


def inputs(**changes):
    given = {
        "logprobs_N": OLD_N.clone().requires_grad_(),
        "advantages_N": torch.ones(5),
        "rollout_logprobs_N": ROLLOUT_N,
        "weights_N": torch.ones(5),
        "row_N": ROW_N,
    }
    return LossInputs(**(given | changes))


def test_the_loss_of_each_token_is_multiplied_and_so_is_its_gradient():
    given = inputs()
    sums = policy_loss(policy_loss_of(Algorithm(correction=TruncateTokens())), given)
    sums.loss_sum.backward()
    torch.testing.assert_close(given.logprobs_N.grad, -torch.tensor([0.25, 1.0, 2.0, 2.0, 0.5]))
    assert sums.totals["policy/correction_mean"] == pytest.approx(5.75)
    assert sums.totals["policy/correction_bounded_fraction"] == 2.0
    assert sums.totals["policy/loss"] == -5.0


def test_a_correction_without_the_engines_log_probabilities_is_an_error():
    with pytest.raises(ValueError, match=r"algorithm\.correction needs the log-probabilities of the engine"):
        policy_loss(policy_loss_of(Algorithm(correction=MaskTokens())), inputs(rollout_logprobs_N=None))


def test_an_unknown_correction_is_refused():
    with pytest.raises(AssertionError):
        correction_of("truncate")
    with pytest.raises(AssertionError):
        importance_weights(OLD_N, ROLLOUT_N, ROW_N, over="token", low=0.0, high=1.0, outside="drop")
