"""Numbers that are not finite, in the driver over scripted roles: the step is not applied and its samples are saved."""

import json

import pytest

from ray_rl.config.train import TrainConfig
from ray_rl.errors import CheckpointError, RewardError, TrainingError
from ray_rl.loops.guard import Guard, Skipped
from ray_rl.metrics.metric import Last, Total

NAN, INF = float("nan"), float("inf")
SKIP = {"on_nonfinite": "skip", "max_skips": 2}
TRAINER_SKIPPED = Total("policy/skipped_optimizer_steps", 1)


def lines(loop):
    return [json.loads(line) for line in loop.folder.metrics_jsonl.read_text().splitlines()]


def saved(loop):
    """Prompts and completions in the files of failed steps, by file name."""
    files = sorted(loop.folder.rollouts.glob("*.failed.jsonl"))
    records = {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
    return {name: [(r["prompt_id"], r["length"]) for r in found] for name, found in records.items()}


ALL_SAMPLES = [("addition/0", 2), ("addition/0", 3), ("addition/1", 2), ("addition/1", 3)]


async def test_an_engine_whose_log_probabilities_are_nan_ends_the_run_before_the_update_and_the_samples_are_saved(loop):
    two = loop()
    two.script.engine_logprobs[1] = NAN
    with pytest.raises(TrainingError) as raised:
        await two.train()
    assert str(raised.value).startswith(
        "prompt addition/0, completion 0 of 2: the engine's log-probability of token 0, sampled by version 1, is nan; "
        "of the step's tokens 10 of 10 are not finite. The step was not applied. "
    )
    assert str(raised.value).endswith(f". The step's samples are in {two.folder.rollouts}/step_000002.failed.jsonl")
    assert two.script.journal[-1] == "take for step 1"
    assert saved(two) == {"step_000002.failed.jsonl": ALL_SAMPLES}
    assert len(lines(two)) == 1


async def test_what_models_say_is_looked_at_as_what_engines_say(loop):
    for place, value, roles in (
        ("the trainer's log-probability", NAN, {"update_epochs": 2}),
        ("the reference's log-probability", -INF, {"reference": True, "kl": {"coefficient": 0.1}}),
        ("the critic's value", INF, {"critic": {}, "kind": "ppo", "advantage": {"kind": "gae"}}),
    ):
        one = loop(steps=1, name=f"run-{len(place)}", **roles)
        one.script.answers[place] = value
        with pytest.raises(TrainingError, match=f"{place} of token 0, sampled by version 0, is {value}; "):
            await one.train()


async def test_a_reward_beyond_float32_and_a_step_whose_rewards_all_failed_are_refused(loop):
    huge = loop(steps=1, name="huge")
    huge.script.rewards[0] = (1e39, 0.0)
    with pytest.raises(RewardError, match=r"completion 0 of 2: its reward 1e\+39 is not finite in float32"):
        await huge.train()
    unscored = loop(steps=1, name="unscored")
    unscored.script.rewards[0] = (None, None)
    unscored.script.take_metrics = [Last("data/epoch", 0), Total("reward/mine_errors", 4)]
    with pytest.raises(RewardError, match=r"no completion of the step has a reward: functions .* failed 4 times on 4"):
        await unscored.train()


async def test_a_step_without_an_opinion_and_without_an_error_is_trained_as_before(loop):
    one = loop(steps=1)
    one.script.rewards[0] = (None, None)
    await one.train()
    assert len(one.script.batches) == 1


async def test_a_skipped_step_is_trained_on_nothing_and_stays_on_record(loop):
    three = loop(steps=3, train=SKIP)
    three.script.engine_logprobs[1] = NAN
    await three.train()
    first, second, third = three.script.batches
    assert first.loss_mask_RT.any()
    assert third.loss_mask_RT.any()
    assert not second.loss_mask_RT.any()
    assert not second.advantages_RT.any()
    assert [line["guard/skipped_steps"] for line in lines(three)] == [0, 1, 0]
    assert [line["step"] for line in lines(three)] == [1, 2, 3]
    assert three.script.journal.count("publish 2") == 1
    assert saved(three) == {}
    assert "step 2 is skipped (1 in a row): prompt addition/0, completion 0 of 2: the engine's" in three.said()


async def test_one_step_too_many_in_a_row_ends_the_run_and_others_do_not_count(loop):
    many = loop(steps=9, train=SKIP)
    many.script.update_metrics = {update: [TRAINER_SKIPPED] for update in (1, 2, 4, 5, 6)}
    with pytest.raises(TrainingError) as raised:
        await many.train()
    assert str(raised.value).startswith(
        "3 steps in a row had numbers that are not finite (train.max_skips=2); the last one: the loss or a gradient "
        "of the policy was not finite, see the logs of the role. The step's samples are in "
    )
    assert [line["guard/skipped_steps"] for line in lines(many)] == [1, 1, 0, 1, 1]
    assert many.script.journal[-1] == "update 6"
    assert saved(many) == {"step_000006.failed.jsonl": ALL_SAMPLES}


async def test_a_run_that_resumes_still_counts_the_steps_that_were_skipped_before_its_checkpoint(loop):
    first = loop(steps=2, every_steps=1, train=SKIP)
    first.script.update_metrics = {1: [TRAINER_SKIPPED], 2: [TRAINER_SKIPPED]}
    await first.train()
    first.run.close()
    second = loop(steps=3, every_steps=1, train=SKIP)
    second.script.update_metrics = {1: [TRAINER_SKIPPED]}
    with pytest.raises(
        TrainingError, match=r"^3 steps in a row had numbers that are not finite \(train\.max_skips=2\)"
    ):
        await second.train()


def test_a_checkpoint_without_a_count_of_skipped_steps_is_resumed_from_0_and_a_damaged_one_is_refused(tmp_path):
    guard = Guard(TrainConfig(), run=None)
    guard.resume(tmp_path)
    assert guard.position() == Skipped(0)
    (tmp_path / "guard.json").write_text('{"in_a_row": null}')
    with pytest.raises(CheckpointError, match=r"guard\.json: no number of skipped steps"):
        guard.resume(tmp_path)


async def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_samples(loop):
    one = loop(steps=1)
    one.script.errors["update 1"] = TrainingError("the loss is nan")
    with pytest.raises(
        TrainingError, match=r"^the loss is nan. The step's samples are in .*/step_000001.failed.jsonl$"
    ):
        await one.train()
    assert saved(one) == {"step_000001.failed.jsonl": ALL_SAMPLES}


async def test_where_nothing_may_be_skipped_records_do_not_speak_of_it(loop):
    one = loop(steps=1)
    await one.train()
    assert "guard/skipped_steps" not in lines(one)[0]
