"""The objectives without rollouts, with numbers worked out by hand: sums over micro-batches, counts of whole steps.

The log-probability of token v is -v / 8, and the score of the state after it v / 8.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ray_rl.algorithms import preference
from ray_rl.batching.encoding import encode
from ray_rl.batching.micro_batches import Tree
from ray_rl.batching.pack_examples import pack_examples
from ray_rl.metrics.metric import Mean, Total, reduce_metrics, values_of_each
from ray_rl.training.objectives.preference import KtoObjective, PairObjective
from ray_rl.training.objectives.ranking import RewardObjective, StepObjective
from ray_rl.training.objectives.supervised import SupervisedObjective
from ray_rl.types import Answer, Example


class ByToken:
    """Stands for a language model: the log-probability of a token depends on the token alone."""

    def score(self, model, inputs):
        return -inputs.labels_N.float() / 8


class ByState:
    """Stands for a model with a head: the score of a state depends on the last token alone."""

    members = 1

    def score(self, model, inputs):
        return inputs.tokens_BL.flatten()[inputs.predict_N].float() / 8

    def each(self, model, inputs):
        return torch.stack([self.score(model, inputs) * (index + 1) for index in range(self.members)])


def example(name, prompt, *answers, **settings):
    made = tuple(Answer(np.array(tokens, np.int32), np.ones(len(tokens), np.bool_)) for tokens in answers)
    return Example(id=name, prompt_ids=(prompt,), answers=made, **settings)


# Chosen -3/8 and -1, rejected -4/8 and -6; 3 chosen tokens.
PAIRS = pack_examples([example("a", 9, [1, 2], [4]), example("b", 7, [8], [16, 32])], loss_at="tokens")
MICRO = (Tree(1, (2, 3)), Tree(0, (0, 1)))
SPLIT = ((MICRO[1],), (), (MICRO[0],))


def outcome(objective, batch, micro_batches, packing="padded"):
    """The sum of the losses, and the metrics, over the micro-batches."""
    total, metrics = 0.0, []
    for micro in micro_batches:
        loss, found = objective.loss(None, encode(batch, micro, packing=packing), batch)
        assert loss.shape == ()
        total += float(loss)
        metrics += found
    return total, {name: value for name, value in reduce_metrics(metrics).items() if name != "train/tokens"}


def of_each(objective, batch, micro_batches):
    """The values of each example that records show."""
    found = [objective.loss(None, encode(batch, micro, packing="padded"), batch)[1] for micro in micro_batches]
    return values_of_each(metric for metrics in found for metric in metrics)


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("packing", ["padded", "packed", "shared_prefix"])
@pytest.mark.parametrize("micro_batches", [(MICRO,), SPLIT], ids=["whole", "split"])
def test_dpo_compares_the_sums_of_a_pair_with_those_of_the_reference(micro_batches, packing):
    objective = PairObjective(
        name="dpo",
        network=ByToken(),
        pair_loss=partial(
            preference.dpo_loss,
            preference.Dpo(
                beta=2.0, label_smoothing=0.0, smoothing="conservative", reference_free=False, likelihood=None
            ),
        ),
    )
    batch = replace(PAIRS, reference_R=np.array([-1.0, -1.0, -2.0, -6.5]))
    # Margins (0.625 - 0.5) * 2 = 0.25 and (1 - 0.5) * 2 = 1.
    loss, metrics = outcome(objective, batch, micro_batches, packing)
    assert loss == pytest.approx(softplus(-0.25) + softplus(-1.0), rel=1e-12)
    assert objective.count(batch, np.arange(4)) == 2
    assert objective.trained(batch, np.arange(4))[0].tolist() == [0, 1, 2, 3]
    assert metrics == pytest.approx(
        {
            "dpo/loss": (softplus(-0.25) + softplus(-1.0)) / 2,
            "dpo/accuracy": 1.0,
            "dpo/margin": 0.625,
            "dpo/chosen_reward": (1.25 + 2.0) / 2,
            "dpo/rejected_reward": (1.0 + 1.0) / 2,
            "dpo/chosen_logprob": -1.375 / 3,
            "dpo/rejected_logprob": -6.5 / 3,
        }
    )
    assert of_each(objective, batch, micro_batches) == {
        "a": {"chosen_reward": 1.25, "rejected_reward": 1.0, "reward_margin": 0.25},
        "b": {"chosen_reward": 2.0, "rejected_reward": 1.0, "reward_margin": 1.0},
    }


def test_a_likelihood_of_each_token_has_the_tokens_of_the_whole_step_in_every_micro_batch():
    likelihood = preference.Likelihood(coefficient=1.0, over="token")
    settings = preference.SimPo(beta=1.0, margin=0.0, likelihood=likelihood)
    objective = PairObjective(name="simpo", network=ByToken(), pair_loss=partial(preference.simpo_loss, settings))
    # Averages: chosen -3/16 and -1, rejected -1/2 and -3. A pair has 1.5 chosen tokens on average.
    first, second = softplus(3 / 16 - 1 / 2) + 3 / 8 / 1.5, softplus(1.0 - 3.0) + 1 / 1.5
    assert outcome(objective, PAIRS, SPLIT[:1])[0] == pytest.approx(first, rel=1e-12)
    assert outcome(objective, PAIRS, SPLIT)[0] == pytest.approx(first + second, rel=1e-12)


@pytest.mark.parametrize("micro_batches", [(MICRO,), SPLIT], ids=["whole", "split"])
def test_a_reward_model_compares_the_last_states_of_a_pair_by_its_margin(micro_batches):
    batch = pack_examples([example("a", 9, [1, 16], [8], margin=0.5), example("b", 7, [8], [1, 32])], loss_at="end")
    objective = RewardObjective(network=ByState(), centering=0.1, seed=0)
    # Scores 2 and 1, 1 and 4.
    loss, metrics = outcome(objective, batch, micro_batches)
    expected = softplus(-(2 - 1 - 0.5)) + softplus(-(1 - 4)) + 0.1 * (9 + 25)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert objective.count(batch, np.arange(4)) == 2
    assert metrics["reward_model/accuracy"] == 0.5
    assert metrics["reward_model/margin"] == pytest.approx((1 - 3) / 2)
    assert metrics["reward_model/chosen_score"] == 1.5
    assert metrics["reward_model/rejected_score"] == 2.5


class TwoByState(ByState):
    """An ensemble: the scores of the second member are twice those of the first."""

    members = 2


def test_each_member_of_an_ensemble_has_its_own_sample_of_the_pairs_in_any_micro_batch():
    examples = [example(f"{i}", 9, [i + 1], [i + 2]) for i in range(64)]
    batch = pack_examples(examples, loss_at="end")
    objective = RewardObjective(network=TwoByState(), centering=0.0, seed=3)
    times = np.array([[objective._draws(each.id, member) for each in examples] for member in (0, 1)])
    assert times.mean() == pytest.approx(1.0, abs=0.2)
    assert (times[0] != times[1]).mean() > 0.3
    # Scores differ by 1/8 and 2/8 for every pair.
    expected = times[0].sum() * softplus(1 / 8) + times[1].sum() * softplus(2 / 8)
    trees = [Tree(i, (2 * i, 2 * i + 1)) for i in range(64)]
    for micro_batches in ((tuple(trees),), tuple((tree,) for tree in reversed(trees))):
        loss, metrics = outcome(objective, batch, micro_batches)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert metrics["reward_model/loss"] == pytest.approx(expected / times.sum())
    assert objective.count(batch, np.arange(128)) == 64
    with torch.no_grad():
        _, evaluated = outcome(objective, batch, ((tuple(trees)),))
    assert evaluated["reward_model/loss"] == pytest.approx((softplus(1 / 8) + softplus(2 / 8)) / 2)
    # Every pair has the mean score of the members, whoever drew it: 3/2 of that of the state.
    scores = of_each(objective, batch, (tuple(trees[:2]), tuple(trees[2:])))
    assert list(scores) == [each.id for each in examples]
    assert scores["1"] == {"chosen_score": 3 / 8, "rejected_score": 4.5 / 8, "score_margin": -1.5 / 8}


ROWS = (Tree(1, (1,)), Tree(0, (0,)))
ONE_BY_ONE = ((ROWS[0],), (), (ROWS[1],))


@pytest.mark.parametrize("micro_batches", [(ROWS,), ONE_BY_ONE], ids=["whole", "split"])
def test_kto_compares_each_row_with_the_baseline_of_the_batch(micro_batches):
    batch = pack_examples([example("a", 9, [1, 2], label=False), example("b", 7, [8], label=True)], loss_at="tokens")
    batch = replace(batch, reference_R=np.array([-0.5, -1.5]), baseline=0.25)
    settings = preference.Kto(beta=2.0, desirable_weight=3.0, undesirable_weight=5.0)
    objective = KtoObjective(network=ByToken(), settings=settings)
    # Log-ratios 0.125 (bad) and 0.5 (good): 5 * sigmoid(2 * (0.125 - 0.25)) and 3 * sigmoid(-2 * (0.5 - 0.25)).
    expected = 5 / (1 + math.exp(0.25)) + 3 / (1 + math.exp(0.5))
    loss, metrics = outcome(objective, batch, micro_batches)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert objective.count(batch, np.arange(2)) == 2
    assert metrics["kto/accuracy"] == 1.0
    assert metrics["kto/chosen_reward"] == pytest.approx(1.0)
    assert metrics["kto/rejected_reward"] == pytest.approx(0.25)
    assert of_each(objective, batch, micro_batches) == {"a": {"reward": 0.25}, "b": {"reward": 1.0}}


@pytest.mark.parametrize("micro_batches", [(ROWS,), ONE_BY_ONE], ids=["whole", "split"])
def test_fine_tuning_counts_the_loss_tokens(micro_batches):
    examples = [example("a", 9, [1, 2, 4]), example("b", 7, [8])]
    examples[0].answers[0].loss_mask[1] = False
    batch = pack_examples(examples, loss_at="tokens")
    objective = SupervisedObjective(network=ByToken(), kind="cross_entropy")
    loss, metrics = outcome(objective, batch, micro_batches)
    assert loss == pytest.approx(13 / 8)
    assert [objective.count(batch, np.array(rows)) for rows in ([0, 1], [0], [1])] == [3, 2, 1]
    assert metrics == pytest.approx({"sft/loss": 13 / 24, "sft/cross_entropy": 13 / 24})
    loss, _ = outcome(replace(objective, kind="dft"), batch, micro_batches)
    assert loss == pytest.approx(sum(v / 8 * math.exp(-v / 8) for v in (1, 4, 8)))


@pytest.mark.parametrize("micro_batches", [(ROWS,), ONE_BY_ONE], ids=["whole", "split"])
def test_a_model_of_steps_counts_the_labelled_steps(micro_batches):
    labels = (np.array([1.0, 0.25], np.float32), np.array([0.0], np.float32))
    examples = [example("a", 9, [4, 3, 8], step_labels=labels[0]), example("b", 7, [16], step_labels=labels[1])]
    examples[0].answers[0].loss_mask[1] = False
    batch = pack_examples(examples, loss_at="steps")
    objective = StepObjective(network=ByState())
    # Log odds 0.5, 1 and 2.
    expected = softplus(-0.5) + 0.25 * softplus(-1.0) + 0.75 * softplus(1.0) + softplus(2.0)
    loss, metrics = outcome(objective, batch, micro_batches)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert [objective.count(batch, np.array(rows)) for rows in ([0, 1], [0], [1])] == [3, 2, 1]
    assert metrics["process_reward_model/accuracy"] == pytest.approx(1 / 3)
    assert metrics["process_reward_model/good_accuracy"] == 1.0


def test_the_tokens_that_a_model_processes_are_counted():
    objective = SupervisedObjective(network=ByToken(), kind="cross_entropy")
    _, metrics = objective.loss(None, encode(PAIRS, MICRO, packing="shared_prefix"), PAIRS)
    assert Total("train/tokens", 8) in metrics
    assert any(isinstance(metric, Mean) and metric.name == "sft/loss" for metric in metrics)


def test_the_sum_of_a_long_answer_is_exact():
    many = pack_examples([example("a", 9, [1] * 4001, [1] * 4000)], loss_at="tokens")

    class Tenths:
        def score(self, model, inputs):
            return torch.full((len(inputs.labels_N),), -0.1)

    settings = preference.Ipo(beta=0.5, over="sum")
    objective = PairObjective(name="ipo", network=Tenths(), pair_loss=partial(preference.ipo_loss, settings))
    batch = replace(many, reference_R=np.zeros(2))
    loss, _ = objective.loss(None, encode(batch, (Tree(0, (0, 1)),), packing="padded"), batch)
    # In float32 the difference of the two sums, -400.1 and -400, would be off by about 1e-5.
    assert float(loss) == pytest.approx((-float(np.float32(0.1)) - 1.0) ** 2, rel=1e-12)
