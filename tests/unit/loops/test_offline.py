"""The driver of training on examples, over a scripted learner."""

import json
import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from ray_rl.checkpoint.store import Checkpoint
from ray_rl.errors import DataError, Preempted, TrainingError
from ray_rl.loops.reference import SCORED_AT_ONCE, mismatched
from ray_rl.loops.resuming import is_finished, opened
from ray_rl.metrics.metric import Mean
from ray_rl.types import Example
from tests.unit.loops.offline import NAN, answer, pair


@pytest.fixture
def loop(offline_loop):
    return offline_loop


def sums_of(*indices: int) -> list[float]:
    return [value for index in indices for value in (-0.02 * (10 * index + 1), -0.03 * (10 * index + 2))]


async def test_every_example_is_scored_by_the_first_weights_before_the_first_step_and_never_again(loop):
    three = loop(steps=3, rows=4)
    await three.train()
    assert three.actor.journal == ["score row:0 to row:3", "update 1", "update 2", "update 3", "export step 3"]
    first, second, third = three.actor.batches
    np.testing.assert_allclose(first.reference_R, sums_of(0, 1), rtol=1e-6)
    np.testing.assert_allclose(second.reference_R, sums_of(2, 3), rtol=1e-6)
    assert third.ids == first.ids
    assert first.baseline is None


async def test_a_step_is_logged_with_its_examples_in_a_folder_of_that_name(loop):
    one = loop(steps=1)
    await one.train()
    (line,) = one.lines()
    assert (line["step"], line["version"], line["data/epoch"], line["dpo/loss"]) == (1, 1, 0, 1.0)
    (file,) = one.folder.examples.iterdir()
    records = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(r["id"], r["answers"], r["tokens"], r["reward_margin"]) for r in records] == [
        ("row:0", ["yes", "no"], [2, 3], 1.0),
        ("row:1", ["yes", "no"], [2, 3], 1.0),
    ]
    assert not one.folder.rollouts.exists()


async def test_a_loss_without_a_reference_needs_no_scores(loop):
    two = loop(kind="simpo")
    await two.train()
    assert two.actor.journal == ["update 1", "update 2", "export step 2"]
    assert two.actor.batches[0].reference_R is None


async def test_a_live_reference_scores_each_batch_and_stores_nothing(loop):
    two = loop(live=True)
    await two.train()
    assert two.reference.journal == ["score row:0 to row:1", "score row:2 to row:3"]
    assert two.actor.journal == ["update 1", "update 2", "export step 2"]
    np.testing.assert_allclose(two.actor.batches[1].reference_R, sums_of(2, 3), rtol=1e-6)
    assert not two.folder.reference_jsonl.exists()


async def test_killed_while_it_scores_a_run_scores_only_what_is_missing(loop):
    rows = 2 * SCORED_AT_ONCE + 1
    first = loop(rows=rows, steps=1)
    killed = f"score row:{SCORED_AT_ONCE} to row:{2 * SCORED_AT_ONCE - 1}"
    first.actor.errors[killed] = TrainingError("killed")
    with pytest.raises(TrainingError):
        await first.train()
    first.run.close()
    torn = first.folder.reference_jsonl.read_bytes() + b'{"id": "row:64", "dig'
    first.folder.reference_jsonl.write_bytes(torn)

    second = loop(rows=rows, steps=1)
    await second.train()
    assert second.actor.journal[:2] == [killed, f"score row:{rows - 1} to row:{rows - 1}"]
    alone = loop(rows=rows, steps=1, name="alone")
    await alone.train()
    assert second.folder.reference_jsonl.read_bytes() == alone.folder.reference_jsonl.read_bytes()


async def test_an_example_that_changed_is_scored_again_and_the_others_are_not(loop):
    first = loop(rows=3)
    await first.train()
    again = loop(rows=3)
    again.since = None
    again.examples.train[1] = pair(7)
    await again.train()
    assert again.actor.scored == [("row:0", "row:7", "row:2")]
    lines = [json.loads(line) for line in again.folder.reference_jsonl.read_text().splitlines()]
    assert [line.get("id") for line in lines] == [None, "row:0", "row:2", "row:7"]


async def test_another_model_scores_everything_again_and_says_so_where_nothing_was_trained(loop):
    first = loop(rows=2)
    await first.train()
    again = loop(rows=2, model="blake2b:2")
    again.since = None
    await again.train()
    assert again.actor.scored == [("row:0", "row:1")]
    assert (
        "computing all log-probabilities of the reference again (model blake2b:1 then, blake2b:2 now)" in again.said()
    )


SAVES = {"every_steps": 1}


async def test_a_resumed_run_keeps_the_reference_with_which_it_started(loop):
    first = loop(rows=2, steps=1, checkpoint=SAVES)
    await first.train()
    changed = loop(rows=2, steps=2, checkpoint=SAVES, model="blake2b:2")
    await changed.train()
    assert changed.actor.scored == []
    assert "keeping the reference with which the run started (model blake2b:1 then, blake2b:2 now)" in changed.said()


async def test_a_resumed_run_whose_reference_is_lost_and_whose_model_changed_is_refused(loop):
    first = loop(rows=2, steps=1, checkpoint=SAVES)
    await first.train()
    lines = first.folder.reference_jsonl.read_bytes().splitlines(keepends=True)
    first.folder.reference_jsonl.write_bytes(b"".join(lines[:-1]))
    changed = loop(rows=2, steps=2, checkpoint=SAVES, model="blake2b:2")
    with pytest.raises(DataError, match=r"it lacks 1 of 2 examples; put back the weights of model\.path"):
        await changed.train()


async def test_a_resumed_run_without_the_file_of_its_reference_computes_it_with_the_same_model_alone(loop):
    first = loop(rows=2, steps=1, checkpoint=SAVES)
    await first.train()
    first.folder.reference_jsonl.unlink()
    changed = loop(rows=2, steps=2, checkpoint=SAVES, model="blake2b:2")
    with pytest.raises(DataError, match=r"model blake2b:1 then, blake2b:2 now\), and it lacks 2 of 2 examples"):
        await changed.train()
    changed.run.close()
    same = loop(rows=2, steps=2, checkpoint=SAVES)
    await same.train()
    assert same.actor.journal[:2] == ["score row:0 to row:1", "load after update 1"]


async def test_a_reference_that_is_not_finite_ends_the_run_with_the_example_and_is_not_stored(loop):
    one = loop(rows=2)
    one.actor.nonfinite.add("row:1")
    with pytest.raises(TrainingError, match="example row:1: the reference's log-probability of its answer is nan"):
        await one.train()
    assert len(one.folder.reference_jsonl.read_bytes().splitlines()) == 1


async def test_a_step_that_is_skipped_is_trained_on_nothing(loop):
    two = loop(live=True, train={"on_nonfinite": "skip", "max_skips": 1})
    two.reference.nonfinite.add("row:0")
    await two.train()
    first, second = two.actor.batches
    assert not first.loss_mask_RT.any()
    assert second.loss_mask_RT.any()
    assert [line["guard/skipped_steps"] for line in two.lines()] == [1, 0]


async def test_the_baseline_of_kto_is_that_of_mismatched_rows_of_the_step(loop):
    """Row i has the token i twice, and its partner is the row before it; policy and reference differ by 0.5 a token."""
    two = loop(kind="kto", live=True, rows=4)
    scores = two.reference.logprobs

    async def less_likely(batch: Any) -> Any:
        return await scores(batch) - np.float32(0.5)

    two.reference.logprobs = less_likely
    await two.train()
    assert two.actor.scored[0] == ("row:0 with row:3", "row:1 with row:0")
    assert [batch.baseline for batch in two.actor.batches] == pytest.approx([1.0, 1.0])


async def test_the_reference_scores_the_mismatched_rows_of_kto_before_the_first_step_too(loop):
    one = loop(kind="kto", rows=3, held_out=1, steps=1, evaluations=[1.0])
    await one.train()
    (before, *_), policy = one.actor.scored[:1], one.actor.scored[1]
    assert before == ("row:0", "row:1", "row:2", "row:3", "row:0 with row:2", "row:1 with row:0", "row:2 with row:1")
    assert policy == ("row:0 with row:2", "row:1 with row:0")
    assert "reference log-probabilities: 0 of 4 examples and 3 mismatched pairs" in one.said()
    assert len(one.folder.reference_jsonl.read_text().splitlines()) == 1 + 4 + 3
    assert one.actor.batches[0].baseline == 0.0


def test_mismatched_rows_are_no_longer_than_the_longest_example():
    """Three examples of 5, 6 and 8 tokens; the prompts get the answers of 5, 1 and 2 tokens."""
    lengths = ((4, 1), (4, 2), (3, 5))
    examples = [
        Example(id=f"{row}", prompt_ids=(row,) * prompt, answers=(answer(row, length=length),), label=True)
        for row, (prompt, length) in enumerate(lengths)
    ]
    assert {key: each.id for key, each in mismatched(examples).items()} == {"1": "1 with 0", "2": "2 with 1"}


async def test_prompts_that_are_all_the_same_have_no_baseline(loop):
    one = loop(kind="kto", rows=1)
    with pytest.raises(DataError, match="all 1 examples have the same prompt, but KTO's baseline gives each prompt"):
        await one.train()


async def test_told_to_stop_the_step_is_finished_and_saved_and_the_next_start_continues_there(loop):
    first = loop(steps=4, rows=3)
    first.actor.meanwhile["update 2"] = first.stop._asked.set
    with pytest.raises(Preempted, match="after step 2 of 4, saved; resume with: ray-rl resume "):
        await first.train()
    first.run.close()
    second = loop(steps=4, rows=3)
    await second.train()
    assert second.actor.journal == ["load after update 2", "update 1", "update 2", "export step 4"]
    assert [batch.ids for batch in (*first.actor.batches, *second.actor.batches)] == [
        ("row:0", "row:1"),
        ("row:2", "row:0"),
        ("row:1", "row:2"),
        ("row:0", "row:1"),
    ]
    assert [(line["step"], line["version"]) for line in second.lines()] == [(1, 1), (2, 2), (3, 3), (4, 4)]


async def test_held_out_examples_are_evaluated_every_so_many_steps_and_after_the_last_one(loop):
    five = loop(kind="simpo", steps=5, held_out=3, evaluate_every=2, evaluations=[9, 8, 7, 6, 5, 4])
    await five.train()
    assert [line.get("eval/loss") for line in five.lines()] == [None, 8.5, None, 6.5, 4.5]
    assert five.actor.journal[2:4] == ["evaluate row:4 to row:5", "evaluate row:6 to row:6"]
    assert [name for name in five.lines()[1] if name.startswith("eval/")] == ["eval/loss"]


async def test_the_best_checkpoint_is_kept_and_exported(loop):
    settings = {"keep_best": "eval/loss", "every_steps": 1, "keep_last": 1}
    run = {"kind": "simpo", "held_out": 1, "evaluate_every": 1, "checkpoint": settings}
    four = loop(steps=4, evaluations=[0.5, 0.3, 0.4, NAN], **run)
    await four.train()
    assert four.store.steps() == [2, 4]
    assert four.actor.journal[-2:] == ["load after update 2", "export step 2"]
    assert four.is_finished()

    further = loop(steps=5, evaluations=[0.1], **run)
    assert not further.is_finished()
    further.folder.export.rename(further.folder.root / "export_before")
    await further.train()
    assert further.actor.journal[-1] == "export step 5"
    assert further.store.steps() == [5]


@pytest.mark.parametrize(
    ("name", "seen"),
    [("margin", (0.1, 0.4, 0.2)), ("calibration_error", (0.3, 0.1, 0.2)), ("cross_entropy", (0.3, 0.1, 0.2))],
)
async def test_the_best_step_is_saved_even_if_no_checkpoint_is_due(loop, name, seen):
    settings = {"keep_best": f"eval/{name}", "every_steps": 100}
    three = loop(kind="simpo", steps=3, held_out=1, evaluate_every=1, checkpoint=settings)
    values = iter(seen)

    async def evaluate(batch: Any) -> list[Any]:
        return [Mean("simpo/loss", 1.0, 1), Mean(f"simpo/{name}", next(values), 1)]

    three.actor.evaluate = evaluate
    await three.train()
    assert three.store.steps() == [2, 3]
    assert three.actor.journal[-1] == "export step 2"


async def test_a_run_whose_evaluations_do_not_improve_ends_early_and_stays_ended(loop):
    run = {"kind": "simpo", "held_out": 1, "evaluate_every": 1, "checkpoint": SAVES}
    nine = loop(steps=9, patience=2, evaluations=[0.5, 0.4, 0.4, 0.6, 0.1], **run)
    await nine.train()
    assert len(nine.lines()) == 4
    assert nine.store.latest(print).step == 4
    assert nine.actor.journal[-1] == "export step 4"
    assert nine.is_finished()
    assert "eval/loss was best after step 2, 0.4, and 2 evaluations since then were not better" in nine.said()
    assert "Done: 4 of 9 steps" in nine.said()
    assert f"ray-rl resume {nine.folder.root} run.patience=null" in nine.said()
    said: list[str] = []
    with ExitStack() as stack:
        assert opened(nine.config, stack, resume="required", note=said.append) is None
    ended = f"{nine.folder.root}: the run ended early, after step 4 of 9 (run.patience=2); "
    assert said == [f"{ended}set run.patience=null to train on"]
    unlimited = nine.config.model_copy(update={"run": nine.config.run.model_copy(update={"patience": None})})
    assert not is_finished(unlimited, nine.folder, nine.store.latest(print))

    longer = loop(steps=9, patience=3, evaluations=[0.7], **run)
    assert not longer.is_finished()
    longer.folder.export.rename(longer.folder.root / "export_before")
    await longer.train()
    assert [line["step"] for line in longer.lines()] == [1, 2, 3, 4, 5]


async def test_an_evaluation_that_is_nan_is_never_the_best_one(loop):
    settings = {"keep_best": "eval/loss", "every_steps": None}
    two = loop(kind="simpo", steps=2, held_out=1, evaluate_every=1, evaluations=[NAN, math.inf], checkpoint=settings)
    await two.train()
    assert two.actor.journal[-1] == "export step 2"
    assert not two.folder.checkpoints.exists()


async def test_a_checkpoint_to_go_back_to_has_the_best_step_of_its_own_time(loop):
    settings = {"keep_best": "eval/loss", "every_steps": 1, "keep_last": 9}
    run = {"kind": "simpo", "held_out": 1, "evaluate_every": 1, "checkpoint": settings}
    three = loop(steps=3, evaluations=[0.5, 0.6, 0.1], **run)
    await three.train()
    back = loop(steps=3, evaluations=[0.7], **run)
    back.since = Checkpoint(2, back.folder.checkpoints / "step_2")
    back.run.rewind(step=2, version=2)
    back.folder.export.rename(back.folder.root / "export_before")
    await back.train()
    assert back.actor.journal[-2:] == ["load after update 1", "export step 1"]


async def test_back_before_the_best_step_the_checkpoint_of_the_best_one_before_may_be_gone(loop):
    settings = {"keep_best": "eval/loss", "every_steps": 1, "keep_last": 2}
    run = {"kind": "simpo", "held_out": 1, "evaluate_every": 1, "checkpoint": settings}
    three = loop(steps=4, evaluations=[0.5, 0.6, 0.6, 0.1], **run)
    await three.train()
    assert three.store.steps() == [3, 4]
    back = loop(steps=5, evaluations=[0.8, 0.7], **run)
    back.since = Checkpoint(3, back.folder.checkpoints / "step_3")
    back.run.rewind(step=3, version=3)
    back.folder.export.rename(back.folder.root / "export_before")
    await back.train()
    assert back.actor.journal[-1] == "export step 5"


async def test_a_run_that_is_resumed_with_another_metric_has_no_best_step_by_it_yet(loop):
    """An accuracy of 0.3 is better than none, and no value of a loss is better or worse than it."""
    run = {"kind": "simpo", "held_out": 1, "evaluate_every": 1}
    settings = {"every_steps": 1, "keep_last": 9}
    two = loop(steps=2, evaluations=[0.5, 0.6], checkpoint={**settings, "keep_best": "eval/loss"}, **run)
    await two.train()
    four = loop(steps=4, checkpoint={**settings, "keep_best": "eval/accuracy"}, **run)
    four.folder.export.rename(four.folder.root / "export_before")
    accuracies = iter([0.3, 0.2])

    async def evaluate(batch: Any) -> list[Any]:
        return [Mean("simpo/loss", 1.0, 1), Mean("simpo/accuracy", next(accuracies), 1)]

    four.actor.evaluate = evaluate
    await four.train()
    assert four.actor.journal[-2:] == ["load after update 1", "export step 3"]


async def test_a_reward_model_is_measured_on_all_held_out_pairs(loop):
    """Scores are made such that the first pair is right with a margin of log 3, and the other two are wrong with it."""
    one = loop(kind="reward_model", steps=1, held_out=3, evaluations=[0.5, 0.5])
    wanted = {"row:4": math.log(3), "row:5": -math.log(3), "row:6": -math.log(3)}

    async def scores(batch: Any) -> Any:
        values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
        for row, length in enumerate(batch.lengths_R):
            values_RT[row, length - 1] = wanted[batch.ids[row // 2]] if row % 2 == 0 else 0.0
        return values_RT

    one.actor.logprobs = scores
    await one.train()
    (line,) = one.lines()
    assert line["eval/accuracy_at_confidence_0.75"] == line["eval/accuracy"] == pytest.approx(1 / 3)
    assert line["eval/calibration_error"] == pytest.approx(0.75 - 1 / 3, abs=1e-6)
    assert line["eval/accuracy_low"] < 1 / 3 < line["eval/accuracy_high"]
    assert "eval/length_correlation" not in line


async def test_a_score_that_is_nan_has_no_calibration_and_is_never_the_best_one(loop):
    settings = {"keep_best": "eval/calibration_error", "every_steps": None}
    two = loop(kind="reward_model", steps=2, held_out=1, evaluate_every=1, evaluations=[0.1, 0.1], checkpoint=settings)
    two.actor.nonfinite.update(each.id for each in two.examples.held_out)
    await two.train()
    line = two.lines()[-1]
    # JSON has no nan.
    assert [line[f"eval/{name}"] for name in ("calibration_error", "accuracy", "tied")] == [None, None, None]
    assert two.actor.journal[-1] == "export step 2"
    assert not two.folder.checkpoints.exists()
