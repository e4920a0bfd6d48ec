import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from ray_rl.algorithms.ranking import bradley_terry_loss, step_loss
from tests.golden import reference

CHOSEN_J = [1.5, -2.0, 0.25, 0.25, 40.0, -30.0]
REJECTED_J = [0.5, 3.0, 0.25, 0.0, -40.0, 50.0]
MARGIN_J = [0.0, 1.0, 0.5, 3.0, 0.0, 1.0]
LABELS_N = [1.0, 0.0, 1.0, 0.0, 0.5, 0.75, 0.1]
LOG_ODDS_N = [2.0, -1.0, -0.5, 3.0, 0.4, 0.1, 0.0]


def leaf(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def test_a_hand_worked_pair_of_scores():
    # sigmoid(log 3) = 3/4 for the difference log 3; (2 log 3)^2 is what centring at 0.01 adds a hundredth of.
    chosen_J, rejected_J = torch.tensor([1.5 * math.log(3)]), torch.tensor([0.5 * math.log(3)])
    loss = bradley_terry_loss(chosen_J, rejected_J, centering=0.0).loss_sum
    centred = bradley_terry_loss(chosen_J, rejected_J, centering=0.01).loss_sum
    assert loss.item() == pytest.approx(math.log(4 / 3))
    assert centred.item() == pytest.approx(math.log(4 / 3) + 0.01 * (2 * math.log(3)) ** 2)


def test_a_margin_asks_for_a_difference_of_scores():
    # The difference is the margin, so that the model is undecided.
    loss = bradley_terry_loss(torch.ones(1), torch.zeros(1), margin_J=torch.ones(1), centering=0.0).loss_sum
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("centering", [0.0, 0.01])
@pytest.mark.parametrize("margin_J", [None, MARGIN_J])
def test_the_sum_over_pairs_agrees_with_the_slow_reference(margin_J, centering):
    margins_J = margin_J or [0.0] * len(CHOSEN_J)
    pairs = zip(CHOSEN_J, REJECTED_J, margins_J, strict=True)
    expected = math.fsum(reference.bradley_terry_pair(*pair, centering=centering) for pair in pairs)
    given = None if margin_J is None else torch.tensor(margin_J, dtype=torch.float64)
    loss = bradley_terry_loss(leaf(CHOSEN_J), leaf(REJECTED_J), margin_J=given, centering=centering).loss_sum
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    loss = bradley_terry_loss(
        leaf(CHOSEN_J, torch.float32),
        leaf(REJECTED_J, torch.float32),
        margin_J=None if given is None else given.float(),
        centering=centering,
    ).loss_sum
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_metrics_of_pairs_count_ties_as_wrong_and_apart():
    means = bradley_terry_loss(leaf(CHOSEN_J), leaf(REJECTED_J), centering=0.0).means
    assert means["accuracy"] == (3.0, 6.0)
    assert means["tied"] == (1.0, 6.0)
    assert means["chosen_score"] == (pytest.approx(sum(CHOSEN_J)), 6.0)
    assert means["rejected_score"] == (pytest.approx(sum(REJECTED_J)), 6.0)
    assert means["margin"] == (pytest.approx(sum(CHOSEN_J) - sum(REJECTED_J)), 6.0)


def test_the_gradient_of_pairs_is_that_of_finite_differences():
    margin_J = torch.tensor(MARGIN_J, dtype=torch.float64)

    def loss(chosen_J, rejected_J):
        return bradley_terry_loss(chosen_J, rejected_J, margin_J=margin_J, centering=0.01).loss_sum

    assert torch.autograd.gradcheck(loss, (leaf(CHOSEN_J), leaf(REJECTED_J)))


def test_the_split_of_pairs_into_micro_batches_changes_nothing():
    whole = bradley_terry_loss(leaf(CHOSEN_J), leaf(REJECTED_J), centering=0.01)
    parts = [
        bradley_terry_loss(leaf(CHOSEN_J)[part], leaf(REJECTED_J)[part], centering=0.01)
        for part in (slice(0, 2), slice(2, 2), slice(2, 6))
    ]
    assert sum(part.loss_sum for part in parts).item() == pytest.approx(whole.loss_sum.item(), rel=1e-14)
    for name, (total, count) in whole.means.items():
        assert sum(part.means[name][0] for part in parts) == pytest.approx(total)
        assert sum(part.means[name][1] for part in parts) == count


def test_a_hand_worked_step():
    # p(good) = 3/4: a good step costs log 4/3, a bad one log 4, and one of which a quarter is good lies between.
    log_odds_N = torch.full((3,), math.log(3))
    loss = step_loss(log_odds_N, torch.tensor([1.0, 0.0, 0.25])).loss_sum
    assert loss.item() == pytest.approx(1.25 * math.log(4 / 3) + 1.75 * math.log(4))


def test_the_steps_agree_with_the_cross_entropy_of_two_labels():
    logits_N2 = torch.tensor([[0.5, -1.0], [2.0, 2.0], [-3.0, 4.0], [30.0, -30.0]], dtype=torch.float64)
    labels_N = torch.tensor([1.0, 0.0, 0.3, 0.0], dtype=torch.float64)
    expected = math.fsum(reference.step(*row) for row in zip(*logits_N2.T.tolist(), labels_N.tolist(), strict=True))
    loss = step_loss(logits_N2[:, 0] - logits_N2[:, 1], labels_N).loss_sum
    targets_N2 = torch.stack([labels_N, 1 - labels_N], 1)
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    assert loss.item() == pytest.approx(cross_entropy(logits_N2, targets_N2, reduction="sum").item(), rel=1e-14)


def test_the_metrics_of_steps_keep_good_and_bad_steps_apart():
    means = step_loss(leaf(LOG_ODDS_N), leaf(LABELS_N)).means
    assert means["loss"][1] == 7.0
    assert means["good_accuracy"] == (2.0, 3.0)
    assert means["bad_accuracy"] == (1.0, 3.0)
    assert means["accuracy"] == (3.0, 6.0)


def test_the_gradient_of_steps_is_that_of_finite_differences():
    labels_N = torch.tensor(LABELS_N, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: step_loss(x, labels_N).loss_sum, leaf(LOG_ODDS_N))


def test_steps_that_the_model_is_sure_of_are_exact_in_float32():
    log_odds_N, labels_N = leaf([20.0, -20.0, 200.0, -200.0], torch.float32), torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = step_loss(log_odds_N, labels_N).loss_sum
    loss.backward()
    assert loss.item() == pytest.approx(400.0)
    assert log_odds_N.grad.tolist() == pytest.approx([-math.exp(-20), math.exp(-20), 1.0, -1.0], rel=1e-6)


def test_no_pairs_and_no_steps_are_a_loss_of_zero_that_can_be_differentiated():
    none = torch.zeros(0, requires_grad=True)
    for sums in (bradley_terry_loss(none, none, centering=0.01), step_loss(none, torch.zeros(0))):
        sums.loss_sum.backward()
        assert sums.loss_sum.item() == 0.0
        assert set(sums.means.values()) == {(0.0, 0.0)}
