"""Evaluations of held-out examples, with real losses over a scripted model."""

import math

import numpy as np
import pytest

from ray_rl.batching.encoding import encode
from ray_rl.batching.micro_batches import Tree
from ray_rl.config.offline import Kto, Sft
from ray_rl.errors import TrainingError
from ray_rl.metrics.metric import Mean
from ray_rl.training.configured import kto_of, pair_loss_of
from ray_rl.training.objectives.preference import KtoObjective, PairObjective
from ray_rl.training.objectives.supervised import SupervisedObjective
from ray_rl.types import Answer, Example
from tests.unit.loops.offline import NAN


@pytest.fixture
def loop(offline_loop):
    return offline_loop


class ByToken:
    """Stands for a language model: the log-probability of a token depends on the token alone, as `Learner`'s."""

    def score(self, model, inputs):
        return -inputs.labels_N.double() / 100


def objective_of(algorithm):
    match algorithm:
        case Sft():
            return SupervisedObjective(network=ByToken(), kind=algorithm.loss)
        case Kto():
            return KtoObjective(network=ByToken(), settings=kto_of(algorithm))
        case _:
            return PairObjective(name=algorithm.kind, network=ByToken(), pair_loss=pair_loss_of(algorithm))


def held_out(kind: str, count: int = 7) -> list[Example]:
    """Examples with answers of 1 to 4 tokens, and other tokens each."""

    def answer(index: int, side: int) -> Answer:
        token_ids = np.arange(1, 2 + (index + side) % 4, dtype=np.int32) * (3 * index + 5 * side + 1)
        return Answer(token_ids, np.ones(len(token_ids), np.bool_))

    sides = 1 if kind in ("sft", "kto") else 2
    return [
        Example(
            id=f"held:{index}",
            prompt_ids=(1, index % 5),
            answers=tuple(answer(index, side) for side in range(sides)),
            label=index % 3 == 0 if kind == "kto" else None,
        )
        for index in range(count)
    ]


async def evaluated(one) -> dict[str, float]:
    """The metrics of the evaluation after the only step, with the real loss."""
    objective = objective_of(one.config.algorithm)

    async def evaluate(batch):
        size = batch.group_size
        groups = [Tree(group, tuple(range(group * size, (group + 1) * size))) for group in range(len(batch.ids))]
        return objective.loss(None, encode(batch, groups, packing="padded"), batch)[1]

    one.actor.evaluate = evaluate
    await one.train()
    (line,) = one.lines()
    return {name: value for name, value in line.items() if name.startswith("eval/")}


LIKELIHOOD = {"likelihood": {"coefficient": 0.7, "over": "token"}}


@pytest.mark.parametrize(
    ("kind", "algorithm", "count"),
    [
        ("dpo", LIKELIHOOD, 7),
        ("simpo", LIKELIHOOD, 7),
        ("orpo", {"over": "token"}, 7),
        ("ipo", {}, 7),
        ("kto", {}, 4),
        ("sft", {}, 2),
    ],
)
async def test_metrics_of_an_evaluation_do_not_depend_on_the_size_of_its_batches(loop, kind, algorithm, count):
    found = []
    for size in (2, 5):
        live = kind in ("dpo", "ipo", "kto")
        one = loop(
            kind=kind, steps=1, held_out=1, live=live, name=f"{kind}{size}", algorithm=algorithm | {"batch_size": size}
        )
        one.examples.held_out[:] = held_out(kind)
        if kind == "sft":
            one.examples.train[:] = held_out(kind)
        if live:
            scores = one.reference.logprobs

            async def other(batch, scores=scores):
                return await scores(batch) * np.float32(1.5) + np.float32(0.01)

            one.reference.logprobs = other
        found.append(await evaluated(one))
    assert len(found[0]) == count
    assert found[0]["eval/loss"] != 0
    assert found[1] == pytest.approx(found[0], abs=1e-6)


async def test_a_likelihood_of_each_token_is_the_mean_of_all_chosen_tokens_held_out(loop):
    """SimPO's loss without a likelihood, plus the mean of all tokens: the coefficient is 1."""
    one = loop(
        kind="simpo",
        steps=1,
        held_out=1,
        name="with",
        algorithm={"likelihood": LIKELIHOOD["likelihood"] | {"coefficient": 1.0}},
    )
    bare = loop(kind="simpo", steps=1, held_out=1, name="without")
    for each in (one, bare):
        each.examples.held_out[:] = held_out("simpo")
    tokens = np.concatenate([each.answers[0].token_ids for each in one.examples.held_out])
    difference = (await evaluated(one))["eval/loss"] - (await evaluated(bare))["eval/loss"]
    assert difference == pytest.approx(tokens.mean() / 100, rel=1e-6)


async def test_a_reference_that_is_not_finite_in_an_evaluation_ends_the_run_and_names_the_example(loop):
    one = loop(steps=1, held_out=3, live=True, evaluations=[1.0, 1.0])
    one.reference.nonfinite.add("row:5")
    with pytest.raises(TrainingError) as raised:
        await one.train()
    assert str(raised.value) == (
        "evaluation after step 1: the reference's log-probability of held-out example row:5 is not finite, nor that of "
        "0 others of 3. The weights of the reference are not finite, or model.dtype=float32 helps"
    )


async def test_where_steps_may_be_skipped_an_evaluation_leaves_out_what_has_no_finite_reference(loop):
    one = loop(steps=2, held_out=3, evaluate_every=1, live=True, evaluations=[4.0, 2.0], train={"on_nonfinite": "skip"})
    one.reference.nonfinite.add("row:5")
    await one.train()
    assert [line["eval/loss"] for line in one.lines()] == [4.0, 2.0]
    assert [line["eval/left_out"] for line in one.lines()] == [1, 1]
    assert [line["guard/skipped_steps"] for line in one.lines()] == [0, 0]
    assert [call for call in one.actor.journal if call.startswith("evaluate")] == ["evaluate row:4 to row:6"] * 2
    assert "held-out example row:5 is not finite" in one.said()
    assert "The evaluation leaves them out (train.on_nonfinite=skip)" in one.said()
    fine = loop(steps=1, held_out=1, live=True, evaluations=[1.0], train={"on_nonfinite": "skip"}, name="fine")
    await fine.train()
    assert fine.lines()[0]["eval/left_out"] == 0


async def test_an_evaluation_of_which_nothing_is_left_ends_the_run(loop):
    one = loop(steps=1, held_out=2, live=True, train={"on_nonfinite": "skip"})
    one.reference.nonfinite.update({"row:4", "row:5"})
    with pytest.raises(TrainingError, match="held-out example row:4 is not finite, nor that of 1 others of 2"):
        await one.train()


@pytest.mark.parametrize("may_skip", [True, False])
async def test_the_baseline_of_an_evaluation_leaves_out_partners_without_a_finite_reference(loop, may_skip):
    settings = {"on_nonfinite": "skip" if may_skip else "stop"}
    one = loop(kind="kto", steps=1, held_out=4, live=True, evaluations=[1.0, 1.0], train=settings)
    partner = "row:5 with row:4"
    one.reference.nonfinite.add(partner)
    seen = []

    async def evaluate(batch):
        seen.append(batch.baseline)
        return [Mean("kto/loss", 1.0, 1)]

    one.actor.evaluate = evaluate
    scores = one.reference.logprobs

    async def less_likely(batch):
        return await scores(batch) - np.float32(0.5)

    one.reference.logprobs = less_likely
    if not may_skip:
        with pytest.raises(TrainingError, match="KTO's baseline is nan"):
            await one.train()
        return
    await one.train()
    assert any(partner in ids for ids in one.actor.scored)
    assert seen == pytest.approx([1.0, 1.0])


async def test_the_accuracy_of_an_ensemble_is_that_of_its_mean_score(loop):
    """Each member is right about one pair, and their mean about both. No member has the tie that their mean has."""
    members = np.array([[4.0, -1.0, 2.0, 0.0], [-1.0, 4.0, -2.0, -1.0]])
    one = loop(kind="reward_model", steps=1, held_out=4, algorithm={"members": 2})
    margins = dict(zip((each.id for each in one.examples.held_out), members.mean(0), strict=True))

    async def scores(batch):
        values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
        for row, length in enumerate(batch.lengths_R):
            values_RT[row, length - 1] = margins[batch.ids[row // 2]] if row % 2 == 0 else 0.0
        return values_RT

    async def evaluate(batch):
        own = [list(margins).index(id) for id in batch.ids]
        right = int((members[:, own] > 0).sum())
        tied = int((members[:, own] == 0).sum())
        shares = {"accuracy": right, "tied": tied}
        of_members = [Mean(f"reward_model/{name}", count, 2 * len(own)) for name, count in shares.items()]
        return [Mean("reward_model/loss", 1.0, 1), *of_members]

    one.actor.logprobs, one.actor.evaluate = scores, evaluate
    await one.train()
    (line,) = one.lines()
    assert line["eval/accuracy"] == pytest.approx(2 / 4)
    assert line["eval/accuracy_low"] < 2 / 4 < line["eval/accuracy_high"]
    assert line["eval/tied"] == pytest.approx(1 / 4)
    assert not math.isnan(NAN if line["eval/calibration_error"] is None else line["eval/calibration_error"])
