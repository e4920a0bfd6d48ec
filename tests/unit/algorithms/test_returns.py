import pytest
import torch

from ray_rl.algorithms.returns import discounted_returns, gae, token_rewards
from tests.golden import reference, tensors

NAN = float("nan")
MASK_RT = tensors.MASK_RT
SCORES_R = torch.tensor([1.0, -2.0, NAN, 0.5, 12.0, 3.0])
REWARDS_RT = tensors.logprobs_RT("old")
VALUES_RT = tensors.logprobs_RT("reference")


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def mask(*values):
    return torch.tensor([values], dtype=torch.bool)


def test_the_score_is_on_the_last_loss_token_and_an_empty_row_needs_none():
    rewards_RT = token_rewards(SCORES_R, MASK_RT)
    assert rewards_RT.nonzero().tolist() == [[0, 8], [1, 6], [3, 3], [4, 5], [5, 0]]
    assert rewards_RT.sum(1).tolist() == [1.0, -2.0, 0.0, 0.5, 12.0, 3.0]


def test_the_kl_penalty_is_on_every_loss_token_and_read_nowhere_else():
    rewards_RT = token_rewards(row(2.0)[0], mask(1, 0, 1), kl_RT=row(0.5, NAN, 1.0), kl_coefficient=0.1)
    assert rewards_RT[0].tolist() == pytest.approx([-0.05, 0.0, 1.9])


def test_scores_are_clipped_on_request():
    assert token_rewards(SCORES_R, MASK_RT, score_bound=10.0)[4, 5].item() == 10.0


def test_a_rollout_without_score_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"rollouts \[1\] have no score"):
        token_rewards(torch.tensor([0.0, NAN]), torch.tensor([[True], [True]]))


def test_returns_are_discounted_by_actions_not_by_positions():
    returns_RT = discounted_returns(row(1.0, 99.0, 2.0, 4.0, 99.0), mask(1, 0, 1, 1, 0), gamma=0.5)
    assert returns_RT[0].tolist() == [3.0, 0.0, 4.0, 4.0, 0.0]


def test_gae_of_two_actions_by_hand():
    advantages_RT, returns_RT = gae(row(1.0, 2.0), row(0.5, 0.25), mask(1, 1), gamma=0.9, lam=0.8)
    last = 2.0 - 0.25
    first = 1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * last
    assert advantages_RT[0].tolist() == pytest.approx([first, last])
    assert returns_RT[0].tolist() == pytest.approx([first + 0.5, last + 0.25])


def test_a_gap_is_carried_over_or_counted_as_states_of_value_zero():
    args = row(0.0, 9.0, 1.0), row(0.5, 9.0, 0.25), mask(1, 0, 1)
    carried_RT, _ = gae(*args, gamma=1.0, lam=0.5)
    zeroed_RT, returns_RT = gae(*args, gamma=1.0, lam=0.5, gaps="zero")
    assert carried_RT[0].tolist() == [0.25 - 0.5 + 0.5 * 0.75, 0.0, 0.75]
    assert zeroed_RT[0].tolist() == [-0.5 + 0.5 * (0.25 + 0.5 * 0.75), 0.0, 0.75]
    assert returns_RT[0, 1].item() == 0.0


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_with_carry_is_that_of_the_row_without_its_gap(gamma, lam):
    advantages_RT, returns_RT = gae(REWARDS_RT, VALUES_RT, MASK_RT, gamma=gamma, lam=lam)
    rewards, values = (reference.by_row(each, MASK_RT) for each in (REWARDS_RT, VALUES_RT))
    expected = [reference.gae_row(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    flat = torch.tensor([x for each in expected for x in each])
    torch.testing.assert_close(tensors.flat(advantages_RT), flat, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns_RT, advantages_RT + VALUES_RT.masked_fill(~MASK_RT, 0.0))
    assert not advantages_RT[~MASK_RT].any()


def test_gae_with_zeroed_gaps_is_that_of_the_row_with_zeros_in_them():
    advantages_RT, _ = gae(REWARDS_RT, VALUES_RT, MASK_RT, gamma=0.9, lam=0.8, gaps="zero")
    zeroed = [each.masked_fill(~MASK_RT, 0.0).tolist() for each in (REWARDS_RT, VALUES_RT)]
    expected = [reference.gae_row(r, v, 0.9, 0.8) for r, v in zip(*zeroed, strict=True)]
    torch.testing.assert_close(tensors.flat(advantages_RT), tensors.flat(torch.tensor(expected)), rtol=1e-5, atol=1e-5)


def test_lambda_one_is_the_discounted_return_minus_the_value():
    advantages_RT, returns_RT = gae(REWARDS_RT, VALUES_RT, MASK_RT, gamma=0.9, lam=1.0)
    expected_RT = discounted_returns(REWARDS_RT, MASK_RT, gamma=0.9)
    torch.testing.assert_close(returns_RT, expected_RT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tensors.flat(advantages_RT), tensors.flat(expected_RT - VALUES_RT), rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing():
    def padded(each_RT):
        return torch.cat([each_RT, torch.full_like(each_RT[:, :3], 77)], 1)

    wide_RT, _ = gae(padded(REWARDS_RT), padded(VALUES_RT), torch.cat([MASK_RT, MASK_RT[:, :3] & False], 1))
    narrow_RT, _ = gae(REWARDS_RT, VALUES_RT, MASK_RT)
    assert torch.equal(wide_RT[:, :9], narrow_RT)


def test_an_unknown_treatment_of_gaps_is_refused():
    with pytest.raises(AssertionError):
        gae(REWARDS_RT, VALUES_RT, MASK_RT, gaps="skip")
