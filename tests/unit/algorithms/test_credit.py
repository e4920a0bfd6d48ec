"""The estimators as configured: which numbers reach which tokens."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_rl.algorithms.credit import kl_of_batch, mean_kl
from ray_rl.config.algorithm import Algorithm, Kl
from ray_rl.training.configured import credit_fn, kl_of
from tests import make
from tests.golden import reference, tensors

NAN = float("nan")
MASK_RT = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
REWARDS_R = [1.0, 0.0, 4.0, 8.0]
KL = {"coefficient": 0.5, "place": "reward", "estimator": "k1"}


def batch_of(rewards_R=REWARDS_R, mask_RT=MASK_RT, group_size=2, **arrays):
    prompts = [(1, 2)] * (len(mask_RT) // group_size)
    rewards_R = np.asarray(rewards_R, np.float32)
    return make.batch(mask_RT.shape, prompts=prompts, loss_mask_RT=mask_RT, rewards_R=rewards_R, **arrays)


def credited(batch, *, coefficient=0.0, max_tokens=10, **algorithm):
    return credit_fn(Algorithm.model_validate(algorithm), max_tokens=max_tokens)(batch, coefficient)


def constant(value, mask_RT=MASK_RT):
    return np.full(mask_RT.shape, value, np.float32)


def test_each_loss_token_gets_the_advantage_of_its_rollout_and_others_zero():
    advantages_RT = credited(batch_of(), advantage={"kind": "group", "divide_by_std": False}).advantages_RT
    assert advantages_RT.dtype == np.float32
    assert advantages_RT.tolist() == [[0.5, 0.5, 0.5], [-0.5, 0.0, -0.5], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]


def test_the_configured_eps_is_used():
    batch = batch_of([1.0, 0.0], np.ones((2, 1), bool))
    assert credited(batch, advantage={"kind": "group", "eps": 0.5}).advantages_RT.tolist() == [[0.5], [-0.5]]


def test_a_batch_that_cannot_be_written_to_is_read():
    batch = batch_of([1.0, 0.0], np.ones((2, 1), bool))
    batch.rewards_R.flags.writeable = False
    advantages_RT = credited(batch, advantage={"kind": "group", "divide_by_std": False}).advantages_RT
    assert advantages_RT.tolist() == [[0.5], [-0.5]]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ({"kind": "leave_one_out"}, [1.0, -1.0, -4.0, 4.0]),
        # Both groups have unequal rewards, so alpha = 1.
        ({"kind": "gpg", "divisor": 2.0}, [0.25, -0.25, -1.0, 1.0]),
        # Centred: 0.5, -0.5, -2, 2 on 3, 2, 0, 1 tokens: mean 2.5 / 6.
        (
            {"kind": "reinforce_plus_plus_baseline", "whiten": {"divide_by_std": False}},
            [1 / 12, -11 / 12, None, 19 / 12],
        ),
        ({"kind": "leave_one_out", "whiten": {"divide_by_std": False}}, [1 / 6, -11 / 6, None, 19 / 6]),
    ],
)
def test_estimators_over_groups_by_hand(advantage, expected):
    advantages_RT = credited(batch_of(), advantage=advantage).advantages_RT
    wanted_RT = np.where(MASK_RT, np.array([x or 0.0 for x in expected])[:, None], 0.0)
    np.testing.assert_allclose(advantages_RT, wanted_RT, rtol=1e-6, atol=1e-7)


def test_a_kl_in_the_reward_of_a_completion_is_the_sum_over_its_tokens_taken_before_the_baseline():
    batch = batch_of(old_logprobs_RT=constant(-1.0), reference_logprobs_RT=constant(-3.0))
    # 2 nats a token at 0.5: minus 3, 2, 0 and 1: scores -2, -2, 4, 7.
    result = credited(batch, coefficient=0.5, advantage={"kind": "leave_one_out"}, kl=KL)
    assert result.advantages_RT[:, 0].tolist() == [0.0, 0.0, 0.0, 3.0]
    assert result.kl_coefficient == 0.0


def test_a_kl_in_the_loss_leaves_the_reward_alone_and_passes_its_coefficient_on():
    batch = batch_of(old_logprobs_RT=constant(-1.0), reference_logprobs_RT=constant(-3.0))
    result = credited(batch, coefficient=0.25, advantage={"kind": "leave_one_out"}, kl={**KL, "place": "loss"})
    assert result.advantages_RT[:, 0].tolist() == [1.0, -1.0, 0.0, 4.0]
    assert result.kl_coefficient == 0.25


def test_advantages_of_a_group_are_clipped_after_its_baseline():
    result = credited(batch_of(), advantage={"kind": "leave_one_out"}, shaping={"clip": 1.5})
    assert result.advantages_RT[:, 0].tolist() == [1.0, -1.0, 0.0, 1.5]


def test_reward_to_go_is_discounted_over_actions_and_whitened():
    plus_plus = {"kind": "reinforce_plus_plus", "gamma": 0.5, "whiten": {"divide_by_std": False}}
    advantages_RT = credited(batch_of(), advantage=plus_plus).advantages_RT
    # Rewards at the last action: returns 1/4, 1/2, 1; 0, 0; 8: mean 9.75 / 6 = 1.625.
    expected = np.where(MASK_RT, np.array([[0.25, 0.5, 1.0], [0, 0, 0], [0, 0, 0], [8.0, 0, 0]]) - 1.625, 0.0)
    np.testing.assert_allclose(advantages_RT, expected, rtol=1e-6)


def test_reinforce_plus_plus_by_hand():
    batch = batch_of([4.0, -2.0], np.array([[1, 1, 0], [1, 0, 1]], bool))
    advantages_RT = credited(batch, advantage={"kind": "reinforce_plus_plus", "gamma": 0.5}).advantages_RT
    # Returns 2, 4; -1, -2: mean 3/4, squares 22.75, unbiased.
    expected = [x / math.sqrt(22.75 / 3) for x in (1.25, 3.25, 0.0, -1.75, 0.0, -2.75)]
    assert advantages_RT.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("ddof", "eps_is_floor"), [(1, False), (0, True)])
def test_reinforce_plus_plus_with_baseline_agrees_with_the_slow_reference(ddof, eps_is_floor):
    batch = batch_of(tensors.REWARDS_PG.flatten(), tensors.MASK_RT.numpy(), group_size=tensors.GROUP_SIZE)
    norm = {"ddof": ddof, "eps_is_floor": eps_is_floor}
    advantages_RT = credited(batch, advantage={"kind": "reinforce_plus_plus_baseline", "whiten": norm}).advantages_RT
    centered = [a for row in tensors.REWARDS_PG.tolist() for a in reference.group_advantage(row, False, 0.0)]
    tokens = [centered[r] for r in tensors.flat_rows().tolist()]
    expected = torch.tensor(reference.whitened(tokens, ddof, 1e-8, eps_is_floor))
    torch.testing.assert_close(tensors.flat(torch.tensor(advantages_RT)), expected, rtol=1e-6, atol=1e-6)
    assert not advantages_RT[~tensors.MASK_RT.numpy()].any()


def test_advantages_are_clipped_before_they_are_whitened():
    leave_one_out = {"kind": "leave_one_out", "whiten": {"divide_by_std": False}}
    advantages_RT = credited(batch_of(), advantage=leave_one_out, shaping={"clip": 1.5}).advantages_RT
    # 1, 1, 1, -1, -1, 1.5: mean 2.5 / 6.
    np.testing.assert_allclose(advantages_RT[:, 0], [3.5 / 6, -8.5 / 6, 0.0, 6.5 / 6], rtol=1e-6)


def gae_of(batch, **more):
    gae = {"kind": "gae", "gamma": 1.0, "lam": 0.5, "whiten": None}
    return credited(batch, kind="ppo", advantage=gae, **more)


def test_generalised_advantages_and_returns_by_hand():
    result = gae_of(batch_of(old_values_RT=constant(0.5)))
    # Row 0: deltas 0, 0, 0.5; advantages 0.125, 0.25, 0.5; row 1 over its gap: deltas 0, -0.5.
    advantages_RT = [[0.125, 0.25, 0.5], [-0.25, 0.0, -0.5], [0, 0, 0], [7.5, 0, 0]]
    assert result.advantages_RT.tolist() == advantages_RT
    assert result.returns_RT.tolist() == np.where(MASK_RT, np.array(advantages_RT) + 0.5, 0.0).tolist()


def test_returns_are_taken_before_advantages_are_whitened():
    batch = batch_of(old_values_RT=constant(0.5))
    whitened = credited(batch, kind="ppo", advantage={"kind": "gae", "gamma": 1.0, "lam": 0.5})
    assert whitened.returns_RT.tolist() == gae_of(batch).returns_RT.tolist()
    inside = whitened.advantages_RT[MASK_RT].astype(np.float64)
    assert inside.mean() == pytest.approx(0.0, abs=1e-7)
    assert inside.std(ddof=1) == pytest.approx(1.0)


def test_a_completion_without_a_score_leaves_the_loss_where_single_tokens_are_credited():
    result = gae_of(batch_of([1.0, NAN, 4.0, 8.0], old_values_RT=constant(0.0)))
    assert result.loss_mask_RT.sum(1).tolist() == [3, 0, 0, 1]
    assert np.isfinite(result.advantages_RT).all()
    by_group = credited(batch_of([1.0, NAN, 4.0, 8.0]))
    assert by_group.loss_mask_RT.sum(1).tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("kind", ["leave_one_out", "reinforce_plus_plus_baseline"])
def test_a_completion_without_a_score_gets_no_push_from_whitening_either(kind):
    mask_RT = np.ones((4, 1), bool)
    advantage = {"kind": kind, "whiten": {"ddof": 0}}
    advantages_RT = credited(batch_of([1.0, NAN, 4.0, NAN], mask_RT, group_size=4), advantage=advantage).advantages_RT
    assert advantages_RT[:, 0].tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0])
    assert advantages_RT[1, 0] == advantages_RT[3, 0] == 0.0


def test_dense_rewards_do_not_make_a_score_of_a_completion_without_one():
    dense_RT = np.ones((4, 3), np.float32)
    done = credited(
        batch_of([1.0, NAN, 4.0, 8.0], token_rewards_RT=dense_RT), advantage={"kind": "group", "divide_by_std": False}
    )
    assert done.advantages_RT[:2].tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_score_is_clipped_before_it_meets_values():
    assert gae_of(batch_of(old_values_RT=constant(0.0)), shaping={"clip": 2.0}).returns_RT[3, 0] == 2.0


def test_the_divergence_of_a_batch_is_that_of_its_loss_tokens():
    batch = batch_of(old_logprobs_RT=constant(-1.0), reference_logprobs_RT=constant(-3.0))
    k1 = kl_of(Kl(estimator="k1"))
    assert kl_of_batch(batch, k1).tolist() == np.where(MASK_RT, 2.0, 0.0).tolist()
    assert mean_kl(batch, k1) == 2.0
    uneven = replace(batch, old_logprobs_RT=np.where(np.arange(3) == 0, -2.0, -1.0).astype(np.float32))
    # Means of the rows that have tokens: (1 + 2 + 2) / 3, (1 + 2) / 2, 1.
    assert mean_kl(uneven, k1) == pytest.approx((5 / 3 + 1.5 + 1) / 3)
    assert mean_kl(batch_of(mask_RT=np.zeros((4, 3), bool), **_logprobs()), k1) == 0.0


def test_the_estimate_is_bounded_as_configured():
    batch = batch_of(old_logprobs_RT=constant(-1.0), reference_logprobs_RT=constant(29.0))
    assert kl_of_batch(batch, kl_of(Kl(bound=10.0))).max() == 10.0
    unbounded_RT = kl_of_batch(batch, kl_of(Kl(max_log_ratio=None)))
    assert unbounded_RT.max() == pytest.approx(float(torch.tensor(30.0).expm1() - 30.0))


def _logprobs():
    return {"old_logprobs_RT": constant(-1.0), "reference_logprobs_RT": constant(-3.0)}


def test_an_estimator_that_is_not_one_is_refused():
    broken = Algorithm().model_copy(update={"advantage": "group"})
    with pytest.raises(AssertionError):
        credit_fn(broken, max_tokens=10)(batch_of(), 0.0)


GAP_RT = np.array([[1, 0, 0, 1], [1, 1, 0, 0]], bool)
"""An episode of two turns with an observation of two tokens between them, and a completion of two tokens."""


def test_gae_carries_over_what_the_environment_says():
    dense_RT = np.array([[2.0, 9.0, 9.0, 0.5], [0.0, 1.0, 0.0, 0.0]], np.float32)
    values_RT = np.array([[0.5, 7.0, 7.0, 0.25], [0.0, 0.0, 0.0, 0.0]], np.float32)
    batch = batch_of([1.0, 0.0], GAP_RT, token_rewards_RT=dense_RT, old_values_RT=values_RT)
    done = credited(batch, advantage={"kind": "gae", "lam": 0.5, "whiten": None})
    # Token 3: 1.5 - 0.25. Token 0: 2 + 0.25 - 0.5 + 0.5 * 1.25.
    assert done.advantages_RT.tolist() == [[2.375, 0.0, 0.0, 1.25], [0.5, 1.0, 0.0, 0.0]]
    assert done.returns_RT.tolist() == [[2.875, 0.0, 0.0, 1.5], [0.5, 1.0, 0.0, 0.0]]


def test_a_group_compares_the_sum_of_all_rewards_of_an_episode():
    dense_RT = np.array([[2.0, 9.0, 9.0, 0.5], [0.0, 1.0, 0.0, 0.0]], np.float32)
    batch = batch_of([1.0, 0.0], GAP_RT, token_rewards_RT=dense_RT)
    done = credited(batch, advantage={"kind": "group", "divide_by_std": False})
    assert done.advantages_RT.tolist() == [[1.25, 0.0, 0.0, 1.25], [-1.25, -1.25, 0.0, 0.0]]


def test_penalties_of_length_count_sampled_tokens():
    batch = batch_of([4.0, 4.0], GAP_RT, sampled_R=np.array([2, 4], np.int32))
    done = credited(batch, advantage={"kind": "group", "divide_by_std": False}, shaping={"per_token": True})
    assert done.advantages_RT.tolist() == [[0.5, 0.0, 0.0, 0.5], [-0.5, -0.5, 0.0, 0.0]]
