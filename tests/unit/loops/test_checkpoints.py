"""The driver and its checkpoints, over scripted roles."""

import asyncio
import json
import signal

import pytest

from ray_rl.checkpoint.store import Checkpoint, write_json
from ray_rl.config.algorithm import Algorithm
from ray_rl.errors import CheckpointError, Preempted, TrainingError
from ray_rl.loops.checkpoints import Progress, read_progress
from ray_rl.loops.credit import Crediting, KlPosition
from ray_rl.metrics.newest_checkpoint import Newest, read_newest

SAVED = ["save actor", "actor is saved"]


def saves(journal):
    return [call for call in journal if call.startswith("save ")]


def ask(loop):
    """What a signal does, without the signal: `os.kill` would reach pytest's own handlers first."""
    loop.stop._asked.set()


async def test_a_checkpoint_is_made_after_every_so_many_steps_and_after_the_last(loop):
    five = loop(steps=5, every_steps=2)
    await five.train()
    assert five.store.steps() == [4, 5]
    assert len(saves(five.script.journal)) == 3
    after_two = five.script.journal.index("publish 2") + 1
    assert five.script.journal[after_two] == "save actor"


async def test_the_run_folder_says_which_checkpoint_was_completed_last(loop):
    five = loop(steps=5, every_steps=2)
    assert read_newest(five.folder.newest_checkpoint_json) == Newest(None)
    await five.train()
    assert read_newest(five.folder.newest_checkpoint_json) == Newest(5)


async def test_without_every_steps_nothing_is_saved(loop):
    two = loop(steps=2)
    await two.train()
    assert not two.folder.checkpoints.exists()


async def test_the_critic_is_saved_beside_the_actor(loop):
    advantage, kl = {"kind": "gae", "whiten": None}, {"coefficient": 0.0, "place": "loss"}
    one = loop(steps=1, every_steps=1, kind="ppo", advantage=advantage, kl=kl, update_epochs=1)
    await one.train()
    (checkpoint,) = one.folder.checkpoints.iterdir()
    assert {path.name for path in checkpoint.iterdir()} >= {"actor", "critic", "rollouts", "run.json"}


async def test_a_run_that_goes_on_starts_where_it_was_saved(loop):
    first = loop(
        steps=4,
        every_steps=2,
        kl={"coefficient": 0.1, "control": {"kind": "adaptive", "target": 0.5}},
        update_epochs=2,
        reference=True,
    )
    first.script.errors["update 4"] = TrainingError("the loss is nan")
    with pytest.raises(TrainingError):
        await first.train()
    first.run.close()
    checkpoint = first.folder.checkpoints / "step_2"
    done = json.loads((checkpoint / "run.json").read_text())
    assert (done["step"], done["version"]) == (2, 2)
    saved = json.loads((checkpoint / "kl.json").read_text())
    assert saved["kl_coefficient"] != 0.1

    second = loop(
        steps=4,
        every_steps=2,
        kl={"coefficient": 0.1, "control": {"kind": "adaptive", "target": 0.5}},
        update_epochs=2,
        reference=True,
    )
    await second.train()
    assert second.script.journal[:4] == ["restore position 2", "load actor", "publish 2", "take for step 2"]
    assert second.script.batches[0].kl_coefficient == saved["kl_coefficient"]
    second.run.close()
    lines = [json.loads(line) for line in second.folder.metrics_jsonl.read_text().splitlines()]
    assert [(line["step"], line["version"]) for line in lines] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert sorted(file.name for file in second.folder.rollouts.iterdir()) == [
        f"step_{step:06d}.jsonl" for step in (1, 2, 3, 4)
    ]


async def test_training_goes_on_while_a_checkpoint_is_written(loop, monkeypatch):
    monkeypatch.setattr("ray_rl.loops.checkpoints.POLL_S", 0.0)
    three = loop(steps=3, every_steps=2)
    three.script.questions = 3
    await three.train()
    journal = three.script.journal
    assert journal.index("save actor") < journal.index("take for step 2") < journal.index("actor is saved")
    assert three.store.steps() == [2, 3]


async def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_those_before_it(loop):
    four = loop(steps=4, every_steps=1)
    four.script.meanwhile["update 2"] = lambda: four.script.errors.update(
        {"actor is saved": CheckpointError("No space left on device")}
    )
    with pytest.raises(CheckpointError, match="No space left"):
        await four.train()
    assert four.store.steps() == [1]
    assert not list(four.folder.checkpoints.glob(".*"))


async def test_a_run_that_fails_still_ends_the_checkpoint_under_way(loop, monkeypatch):
    monkeypatch.setattr("ray_rl.loops.checkpoints.POLL_S", 0.0)
    three = loop(steps=3, every_steps=2)
    three.script.questions = 3
    three.script.errors["take for step 2"] = TrainingError("no more")
    with pytest.raises(TrainingError):
        await three.train()
    assert three.store.steps() == [2]


async def test_a_checkpoint_that_takes_too_long_is_an_error_with_the_remedy(loop):
    one = loop(steps=1, every_steps=1, timeout_s=0.05)
    one.script.questions = 10**6
    with pytest.raises(CheckpointError, match=r"step 1 was not written within checkpoint.timeout_s=0.05; raise it"):
        await one.train()
    assert one.store.steps() == []


async def test_told_to_stop_in_an_update_the_step_is_finished_and_saved(loop):
    four = loop(steps=4)
    four.script.meanwhile["update 2"] = lambda: ask(four)
    with pytest.raises(Preempted, match="after step 2 of 4, saved; resume with: ray-rl resume "):
        await four.train()
    assert four.script.journal[-3:] == ["publish 2", *SAVED]
    assert four.store.steps() == [2]


async def test_told_to_stop_while_rollouts_are_waited_for_the_step_is_given_up(loop):
    four = loop(steps=4)
    four.script.hangs_in_step = 2
    four.script.meanwhile["take for step 2"] = lambda: ask(four)
    with pytest.raises(Preempted, match="after step 2 of 4, saved; resume with: ray-rl resume "):
        await four.train()
    assert four.script.journal[-3:] == ["take for step 2", *SAVED]


async def test_a_step_that_is_saved_already_is_not_saved_again(loop):
    four = loop(steps=4, every_steps=2)
    four.script.hangs_in_step = 2
    four.script.meanwhile["take for step 2"] = lambda: ask(four)
    with pytest.raises(Preempted):
        await four.train()
    assert saves(four.script.journal) == ["save actor"]
    assert four.store.steps() == [2]


async def test_told_to_stop_in_the_last_step_the_run_is_done(loop):
    two = loop(steps=2)
    two.script.meanwhile["update 2"] = lambda: ask(two)
    await two.train()
    assert two.script.journal[-1] == "export step 2 to export"


async def test_a_signal_before_there_is_anything_to_save_cancels_at_once(loop):
    one = loop()
    one.stop.listen()
    one.stop._ask(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5)
    assert one.stop.signal == signal.SIGTERM
    assert not one.stop.is_immediate


async def never_asked(*batch, **settings):
    raise AssertionError


async def test_the_kl_coefficient_of_a_checkpoint_of_version_0_1_is_read_from_its_run_json(tmp_path):
    write_json(tmp_path / "run.json", {"step": 2, "version": 2, "kl_coefficient": 0.3, "models": {}})
    credit = Crediting(Algorithm(), never_asked, max_tokens=8)
    credit.resume(tmp_path)
    assert credit.position() == KlPosition(0.3)
    assert read_progress(Checkpoint(2, tmp_path)) == Progress(2, 2)


async def test_a_checkpoint_without_a_kl_coefficient_is_refused_by_name(tmp_path):
    write_json(tmp_path / "run.json", {"step": 2, "version": 2})
    with pytest.raises(CheckpointError, match=r"run\.json: no KL coefficient"):
        Crediting(Algorithm(), never_asked, max_tokens=8).resume(tmp_path)
