import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_rl.algorithms.kto import kto_baseline, mismatched_rows
from ray_rl.algorithms.preference import (
    Dpo,
    Ipo,
    Kto,
    Likelihood,
    Orpo,
    Pairs,
    SimPo,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    simpo_loss,
)
from tests.golden import reference as slow

CHOSEN_J = [-4.0, -12.5, -3.0, -0.75, -300.0]
REJECTED_J = [-6.0, -2.5, -3.0, -30.0, -20.0]
REFERENCE_CHOSEN_J = [-5.0, -10.0, -2.0, -1.0, -310.0]
REFERENCE_REJECTED_J = [-5.5, -4.0, -2.0, -40.0, -19.0]
CHOSEN_TOKENS_J = [4, 5, 2, 3, 150]
REJECTED_TOKENS_J = [3, 1, 2, 10, 9]
TOKENS_PER_PAIR = sum(CHOSEN_TOKENS_J) / 5

DPO = Dpo(beta=0.1, label_smoothing=0.0, smoothing="conservative", reference_free=False, likelihood=None)
KTO = Kto(beta=0.1, desirable_weight=1.3, undesirable_weight=0.7)
LOSSES = {
    "dpo": (dpo_loss, DPO, lambda c, r, c0, r0, n, k: slow.dpo_pair(c - c0 - r + r0, 0.1)),
    "conservative": (
        dpo_loss,
        replace(DPO, label_smoothing=0.2),
        lambda c, r, c0, r0, n, k: slow.dpo_pair(c - c0 - r + r0, 0.1, 0.2),
    ),
    "robust": (
        dpo_loss,
        replace(DPO, label_smoothing=0.2, smoothing="robust"),
        lambda c, r, c0, r0, n, k: slow.dpo_pair(c - c0 - r + r0, 0.1, 0.2, robust=True),
    ),
    "reference_free": (
        dpo_loss,
        replace(DPO, reference_free=True),
        lambda c, r, c0, r0, n, k: slow.dpo_pair(c - r, 0.1),
    ),
    "dpo_token_likelihood": (
        dpo_loss,
        replace(DPO, likelihood=Likelihood(coefficient=0.3, over="token")),
        lambda c, r, c0, r0, n, k: slow.dpo_pair(c - c0 - r + r0, 0.1) - 0.3 * c / TOKENS_PER_PAIR,
    ),
    "dpo_pair_likelihood": (
        dpo_loss,
        replace(DPO, likelihood=Likelihood(coefficient=0.3, over="pair")),
        lambda c, r, c0, r0, n, k: slow.dpo_pair(c - c0 - r + r0, 0.1) - 0.3 * c / n,
    ),
    "ipo_mean": (
        ipo_loss,
        Ipo(beta=0.1, over="mean"),
        lambda c, r, c0, r0, n, k: slow.ipo_pair((c - c0) / n - (r - r0) / k, 0.1),
    ),
    "ipo_sum": (
        ipo_loss,
        Ipo(beta=0.1, over="sum"),
        lambda c, r, c0, r0, n, k: slow.ipo_pair(c - c0 - r + r0, 0.1),
    ),
    "simpo": (
        simpo_loss,
        SimPo(beta=2.0, margin=1.0, likelihood=None),
        lambda c, r, c0, r0, n, k: slow.simpo_pair(c, r, n, k, 2.0, 1.0),
    ),
    "cpo_simpo": (
        simpo_loss,
        SimPo(beta=2.0, margin=1.0, likelihood=Likelihood(coefficient=1.0, over="token")),
        lambda c, r, c0, r0, n, k: slow.simpo_pair(c, r, n, k, 2.0, 1.0) - c / TOKENS_PER_PAIR,
    ),
    "orpo_pair": (
        orpo_loss,
        Orpo(beta=0.1, over="pair"),
        lambda c, r, c0, r0, n, k: slow.orpo_pair(c, r, n, k, 0.1) - c / n,
    ),
    "orpo_token": (
        orpo_loss,
        Orpo(beta=0.1, over="token"),
        lambda c, r, c0, r0, n, k: slow.orpo_pair(c, r, n, k, 0.1) - c / TOKENS_PER_PAIR,
    ),
}
"""The function, its settings, and the slow loss of a pair, from c, r, c0, r0, |c| and |r|."""
EACH_LOSS = pytest.mark.parametrize("kind", LOSSES)


def pairs_of(index=slice(None), *, chosen_J=None, rejected_J=None, dtype=torch.float64):
    """The pairs above, or some of them."""

    def picked(values, dtype=dtype):
        return torch.tensor(values, dtype=dtype)[index]

    return Pairs(
        chosen_J=picked(CHOSEN_J) if chosen_J is None else chosen_J[index],
        rejected_J=picked(REJECTED_J) if rejected_J is None else rejected_J[index],
        reference_J=(picked(REFERENCE_CHOSEN_J), picked(REFERENCE_REJECTED_J)),
        chosen_tokens_J=picked(CHOSEN_TOKENS_J, torch.int64),
        rejected_tokens_J=picked(REJECTED_TOKENS_J, torch.int64),
        tokens_per_pair=TOKENS_PER_PAIR,
    )


def one_pair(chosen, rejected, *, reference=(0.0, 0.0), tokens=(1, 1), tokens_per_pair=1.0, dtype=torch.float64):
    def alone(value, dtype=dtype):
        return torch.tensor([value], dtype=dtype)

    return Pairs(
        chosen_J=alone(chosen).requires_grad_(),
        rejected_J=alone(rejected).requires_grad_(),
        reference_J=(alone(reference[0]), alone(reference[1])),
        chosen_tokens_J=alone(tokens[0], torch.int64),
        rejected_tokens_J=alone(tokens[1], torch.int64),
        tokens_per_pair=tokens_per_pair,
    )


def loss_of(kind, pairs):
    function, settings, _ = LOSSES[kind]
    return function(settings, pairs)


def leaf(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def expected_loss(kind):
    """The sum over all pairs, by the slow reference."""
    columns = (CHOSEN_J, REJECTED_J, REFERENCE_CHOSEN_J, REFERENCE_REJECTED_J, CHOSEN_TOKENS_J, REJECTED_TOKENS_J)
    return math.fsum(LOSSES[kind][2](*pair) for pair in zip(*columns, strict=True))


@EACH_LOSS
def test_the_sum_over_pairs_agrees_with_the_slow_reference(kind):
    assert loss_of(kind, pairs_of()).loss_sum.item() == pytest.approx(expected_loss(kind), rel=1e-13)
    in_float32 = loss_of(kind, pairs_of(dtype=torch.float32)).loss_sum
    assert in_float32.dtype == torch.float32
    assert in_float32.item() == pytest.approx(expected_loss(kind), rel=1e-5)


@EACH_LOSS
def test_the_gradient_is_that_of_finite_differences(kind):
    def loss(chosen_J, rejected_J):
        return loss_of(kind, pairs_of(chosen_J=chosen_J, rejected_J=rejected_J)).loss_sum

    assert torch.autograd.gradcheck(loss, (leaf(CHOSEN_J), leaf(REJECTED_J)))


@EACH_LOSS
def test_the_split_of_pairs_into_micro_batches_changes_nothing(kind):
    whole_J, split_J = leaf(CHOSEN_J), leaf(CHOSEN_J)
    whole = loss_of(kind, pairs_of(chosen_J=whole_J))
    whole.loss_sum.backward()
    parts = [loss_of(kind, pairs_of(part, chosen_J=split_J)) for part in ([4, 0], [], [1, 3, 2])]
    sum(part.loss_sum for part in parts).backward()
    torch.testing.assert_close(split_J.grad, whole_J.grad, rtol=1e-15, atol=0)
    assert sum(part.loss_sum.item() for part in parts) == pytest.approx(whole.loss_sum.item(), rel=1e-14)
    for name, (total, count) in whole.means.items():
        assert sum(part.means[name][0] for part in parts) == pytest.approx(total)
        assert sum(part.means[name][1] for part in parts) == count


@EACH_LOSS
def test_no_pairs_are_a_loss_of_zero_that_can_be_differentiated(kind):
    none_J = leaf([])
    sums = loss_of(kind, replace(pairs_of([]), chosen_J=none_J))
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == 0.0
    assert set(sums.means.values()) == {(0.0, 0.0)}


def test_before_the_first_step_dpo_is_undecided():
    # sigmoid(0) = 1/2; each completion is pushed by beta / 2.
    pairs = one_pair(-3.0, -7.0, reference=(-3.0, -7.0))
    sums = dpo_loss(DPO, pairs)
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == pytest.approx(math.log(2))
    assert (pairs.chosen_J.grad.item(), pairs.rejected_J.grad.item()) == pytest.approx((-0.05, 0.05))
    assert sums.means["accuracy"] == (0.0, 1.0)


def test_a_hand_worked_pair_of_dpo():
    # m = (2 + 1) log 3, so that beta m = log 3 at beta 1/3: sigmoid 3/4, 1/4 for the other order.
    log3 = math.log(3)
    pairs = one_pair(-1.0 + 2 * log3, -2.0 - log3, reference=(-1.0, -2.0))
    settings = replace(DPO, beta=1 / 3)
    right, wrong = math.log(4 / 3), math.log(4)
    assert dpo_loss(settings, pairs).loss_sum.item() == pytest.approx(right)
    smoothed = dpo_loss(replace(settings, label_smoothing=0.1), pairs).loss_sum.item()
    assert smoothed == pytest.approx(0.9 * right + 0.1 * wrong)
    robust = dpo_loss(replace(settings, label_smoothing=0.1, smoothing="robust"), pairs).loss_sum.item()
    assert robust == pytest.approx((0.9 * right - 0.1 * wrong) / 0.8)


def test_the_robust_loss_is_dpo_in_expectation_over_wrong_labels():
    # With probability e the pair comes in the wrong order.
    settings = replace(DPO, label_smoothing=0.2, smoothing="robust")
    pair, swapped = one_pair(-3.0, -9.0), one_pair(-9.0, -3.0)
    noisy = 0.8 * dpo_loss(settings, pair).loss_sum + 0.2 * dpo_loss(settings, swapped).loss_sum
    assert noisy.item() == pytest.approx(dpo_loss(DPO, pair).loss_sum.item())


def test_the_conservative_loss_is_least_where_the_odds_are_those_of_the_labels():
    # beta m = log((1 - e) / e)
    pair = one_pair(10 * math.log(4), 0.0)
    dpo_loss(replace(DPO, label_smoothing=0.2), pair).loss_sum.backward()
    assert pair.chosen_J.grad.item() == pytest.approx(0.0, abs=1e-16)


def test_ipo_is_least_at_its_gap_per_token_or_per_completion():
    # 1 / (2 beta) = 5 nats: 12 / 4 - -4 / 2 per token, and 2 - -3.
    assert ipo_loss(Ipo(beta=0.1, over="mean"), one_pair(12.0, -4.0, tokens=(4, 2))).loss_sum.item() == 0.0
    assert ipo_loss(Ipo(beta=0.1, over="sum"), one_pair(2.0, -3.0, tokens=(4, 2))).loss_sum.item() == 0.0


def test_the_margin_of_simpo_comes_after_beta():
    # 2.5 * (-1 - -1.4) - 1 = 0
    pair = one_pair(-4.0, -14.0, tokens=(4, 10))
    sums = simpo_loss(SimPo(beta=2.5, margin=1.0, likelihood=None), pair)
    assert sums.loss_sum.item() == pytest.approx(math.log(2))
    assert sums.means["margin"] == (pytest.approx(1.0), 1.0)
    assert sums.means["accuracy"] == (1.0, 1.0)


def test_a_hand_worked_pair_of_orpo():
    # Averages of log 3/4 and log 1/4: odds 3 and 1/3, odds ratio 9.
    pair = one_pair(2 * math.log(0.75), 3 * math.log(0.25), tokens=(2, 3), tokens_per_pair=4.0)
    per_pair = orpo_loss(Orpo(beta=0.5, over="pair"), pair).loss_sum.item()
    per_token = orpo_loss(Orpo(beta=0.5, over="token"), pair).loss_sum.item()
    assert per_pair == pytest.approx(-math.log(0.75) - 0.5 * math.log(0.9))
    assert per_token == pytest.approx(-2 * math.log(0.75) / 4 - 0.5 * math.log(0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("average", [0.0, -1e-12, -1e-8, -(2.0**-24), -1e-7, -1e-3, -0.6931, -0.6932, -20.0, -5000.0])
def test_orpo_is_finite_and_exact_for_completions_that_are_certain_and_that_are_impossible(average, dtype):
    for chosen, rejected in ((average, -1.0), (-1.0, average)):
        pair = one_pair(chosen, rejected, dtype=dtype)
        loss = orpo_loss(Orpo(beta=1.0, over="pair"), pair).loss_sum
        loss.backward()
        bounded_chosen, bounded_rejected = min(chosen, -(2.0**-24)), min(rejected, -(2.0**-24))
        odds = (x - math.log(-math.expm1(x)) for x in (bounded_chosen, bounded_rejected))
        expected = -chosen - slow.log_sigmoid(next(odds) - next(odds))
        assert loss.item() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)
        assert torch.isfinite(pair.chosen_J.grad).all()
        assert torch.isfinite(pair.rejected_J.grad).all()


def test_a_preference_that_is_clear_is_exact_in_float32():
    settings = replace(DPO, beta=1.0)
    pair, contrary = one_pair(0.0, -30.0, dtype=torch.float32), one_pair(-400.0, 0.0, dtype=torch.float32)
    for each, loss, gradient in ((pair, math.exp(-30), -math.exp(-30)), (contrary, 400.0, -1.0)):
        found = dpo_loss(settings, each).loss_sum
        found.backward()
        assert found.item() == pytest.approx(loss, rel=1e-5, abs=0)
        assert each.chosen_J.grad.item() == pytest.approx(gradient, rel=1e-5, abs=0)


@pytest.mark.parametrize("kind", ["dpo", "ipo_mean", "ipo_sum"])
def test_without_a_reference_the_error_says_what_is_missing(kind):
    with pytest.raises(ValueError, match="no log-probabilities of the reference"):
        loss_of(kind, replace(pairs_of(), reference_J=None))


def test_a_setting_that_does_not_exist_is_an_error():
    for function, settings in (
        (dpo_loss, replace(DPO, smoothing="brave")),
        (dpo_loss, replace(DPO, likelihood=Likelihood(coefficient=1.0, over="word"))),
        (ipo_loss, Ipo(beta=0.1, over="word")),
    ):
        with pytest.raises(AssertionError):
            function(settings, pairs_of())


@pytest.mark.parametrize("kind", ["reference_free", "simpo", "orpo_pair"])
def test_a_loss_without_a_reference_does_not_read_it(kind):
    with_one, without = (
        loss_of(kind, replace(pairs_of(), reference_J=given)) for given in (pairs_of().reference_J, None)
    )
    assert torch.equal(with_one.loss_sum, without.loss_sum)


def test_the_metrics_of_dpo_are_its_implicit_rewards_and_the_log_probability_of_a_token():
    means = dpo_loss(DPO, pairs_of()).means
    chosen = [0.1 * (c - c0) for c, c0 in zip(CHOSEN_J, REFERENCE_CHOSEN_J, strict=True)]
    rejected = [0.1 * (r - r0) for r, r0 in zip(REJECTED_J, REFERENCE_REJECTED_J, strict=True)]
    assert means["chosen_reward"] == (pytest.approx(sum(chosen)), 5.0)
    assert means["rejected_reward"] == (pytest.approx(sum(rejected)), 5.0)
    assert means["margin"] == (pytest.approx(sum(chosen) - sum(rejected)), 5.0)
    assert means["chosen_logprob"] == (pytest.approx(sum(CHOSEN_J)), sum(CHOSEN_TOKENS_J))
    assert means["rejected_logprob"] == (pytest.approx(sum(REJECTED_J)), sum(REJECTED_TOKENS_J))
    # 1.0 > -0.5; -2.5 < 1.5; a tie at -1.0; 0.25 < 10; 10 > -1
    assert means["accuracy"] == (2.0, 5.0)


LOG_RATIOS_R = [3.0, -1.0, 0.5, 0.0, -40.0, 0.5]
IS_DESIRABLE_R = [True, True, False, False, False, True]


def kto(log_ratios_R, index=slice(None), *, baseline=0.5):
    reference_R = torch.linspace(-20, -1, 6, dtype=torch.float64)
    desirable_R = torch.tensor(IS_DESIRABLE_R)[index]
    return kto_loss(KTO, (log_ratios_R + reference_R)[index], reference_R[index], desirable_R, baseline=baseline)


def test_a_hand_worked_row_of_kto():
    # beta (d - z) = log 3: a good row lacks 1/4, a bad row has 3/4 too much.
    log_ratio_R, zeros_R = torch.tensor([0.5 + 10 * math.log(3)] * 2), torch.zeros(2)
    sums = kto_loss(KTO, log_ratio_R, zeros_R, torch.tensor([True, False]), baseline=0.5)
    assert sums.means["loss"] == (pytest.approx(1.3 * 0.25 + 0.7 * 0.75), 2.0)


def test_kto_agrees_with_the_slow_reference():
    expected = math.fsum(
        slow.kto_row(d, desirable, 0.5, 0.1, 1.3, 0.7)
        for d, desirable in zip(LOG_RATIOS_R, IS_DESIRABLE_R, strict=True)
    )
    assert kto(leaf(LOG_RATIOS_R)).loss_sum.item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_kto_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda d_R: kto(d_R).loss_sum, leaf(LOG_RATIOS_R))


def test_the_metrics_of_kto_keep_good_and_bad_rows_apart():
    means = kto(leaf(LOG_RATIOS_R)).means
    assert means["chosen_reward"] == (pytest.approx(0.25), 3.0)
    assert means["rejected_reward"] == (pytest.approx(-3.95), 3.0)
    # Right are the first row and the bad rows below 0.5; both rows that equal the baseline are wrong.
    assert means["accuracy"] == (3.0, 6.0)


def test_the_split_of_kto_into_micro_batches_changes_nothing_for_one_baseline():
    whole_R, split_R = leaf(LOG_RATIOS_R), leaf(LOG_RATIOS_R)
    whole = kto(whole_R)
    whole.loss_sum.backward()
    parts = [kto(split_R, index) for index in ([5], [], [0, 1], [4, 2, 3])]
    sum(part.loss_sum for part in parts).backward()
    torch.testing.assert_close(split_R.grad, whole_R.grad, rtol=1e-15, atol=0)
    for name, (total, count) in whole.means.items():
        assert sum(part.means[name][0] for part in parts) == pytest.approx(total)
        assert sum(part.means[name][1] for part in parts) == count


def test_a_row_far_from_the_baseline_is_exact_in_float32():
    logprobs_R = leaf([300.0, -300.0], torch.float32)
    loss = kto_loss(KTO, logprobs_R, torch.zeros(2), torch.tensor([True, False]), baseline=0.0).loss_sum
    loss.backward()
    assert loss.item() == pytest.approx(2.0 * math.exp(-30), rel=1e-5, abs=0)
    assert logprobs_R.grad.tolist() == pytest.approx([-0.13 * math.exp(-30), 0.07 * math.exp(-30)], rel=1e-5, abs=0)


def test_the_baseline_is_the_mean_log_ratio_and_never_negative():
    assert kto_baseline(np.array([1.0, 2.0, -0.75], np.float32)) == pytest.approx(0.75)
    assert kto_baseline(np.array([-1.0, 0.5])) == 0.0
    assert math.isnan(kto_baseline(np.array([1.0, math.nan])))


def test_each_prompt_is_paired_with_the_completion_of_the_row_before():
    assert mismatched_rows(["a", "b", "c"]).tolist() == [[0, 2], [1, 0], [2, 1]]


def test_rows_of_one_prompt_are_paired_with_those_of_others():
    assert mismatched_rows(["a", "b", "a", "b"]).tolist() == [[0, 1], [2, 3], [1, 0], [3, 2]]


def test_rows_without_a_partner_are_left_out():
    assert mismatched_rows(["a", "a", "b", "a"]).tolist() == [[3, 2], [2, 0]]


@pytest.mark.parametrize("prompts", [["a"], ["a", "a", "a"]])
def test_a_step_with_one_prompt_has_no_baseline(prompts):
    with pytest.raises(ValueError, match="1 different prompts"):
        mismatched_rows(prompts)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30).filter(lambda prompts: len(set(prompts)) > 1))
def test_no_prompt_meets_its_own_completion_and_no_completion_is_used_twice(prompts):
    pairs = mismatched_rows(prompts).tolist()
    assert all(prompts[row] != prompts[other] for row, other in pairs)
    largest = max(prompts.count(prompt) for prompt in prompts)
    expected = min(len(prompts), 2 * (len(prompts) - largest))
    assert len({row for row, _ in pairs}) == len({other for _, other in pairs}) == len(pairs) == expected
