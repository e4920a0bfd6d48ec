"""Going back to a checkpoint when a worker that trains is lost, over scripted roles."""

import json
from functools import partial

import pytest

from ray_rl.errors import CheckpointError, TrainingError, WorkerLost
from ray_rl.loops import online
from ray_rl.loops.recovery import train_on
from ray_rl.loops.resuming import newest_checkpoint

LOST = WorkerLost("the update of the actor: actor-1 died on 10.0.0.7 (process 4711).\nLast lines")


async def train(loop, *, errors):
    script = loop.script
    script.errors.update(errors)

    async def restart():
        script.errors = {call: error for call, error in script.errors.items() if call == "restart"}
        script.enter("restart")
        return ["actor"]

    def session(since):
        script.enter("first prompt")
        return loop.session(since)

    await train_on(
        loop.run,
        online.train,
        session,
        since=None,
        restart=restart,
        newest=partial(newest_checkpoint, loop.config, loop.folder, loop.run.tell),
        max_restarts=loop.config.cluster.max_restarts,
    )


async def test_a_lost_trainer_costs_the_steps_behind_the_newest_checkpoint(loop):
    four = loop(steps=4, every_steps=2, export=False)
    await train(four, errors={"update 4": LOST})
    journal = four.script.journal
    after = journal[journal.index("update 4") + 1 :]
    assert after[:6] == ["restart", "first prompt", "restore position 2", "load actor", "publish 2", "take for step 2"]
    four.run.close()
    lines = [json.loads(line) for line in four.folder.metrics_jsonl.read_text().splitlines()]
    assert [(line["step"], line["version"]) for line in lines] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert (
        "actor-1 died on 10.0.0.7 (process 4711). Going back to step 2 of 4; restart 1 of 3" in four.console.getvalue()
    )
    assert "Done: 4 of 4 steps" in four.console.getvalue()


async def test_without_a_checkpoint_the_run_starts_from_the_weights_it_began_with(loop):
    two = loop(steps=2, export=False)
    await train(two, errors={"publish 2": LOST})
    after = two.script.journal[two.script.journal.index("publish 2") + 1 :]
    assert after[:4] == ["restart", "first prompt", "publish 0", "take for step 0"]
    two.run.close()
    assert len(two.folder.metrics_jsonl.read_text().splitlines()) == 2
    assert len(list(two.folder.rollouts.iterdir())) == 2
    (aside,) = (two.folder.root / "aside").iterdir()
    assert (aside / "metrics.jsonl").read_bytes().count(b"\n") == 1
    assert len(list((aside / "tensorboard").iterdir())) == 1  # else its curve would have every step twice


async def test_where_the_checkpoints_are_gone_a_lost_trainer_ends_the_run_and_no_record_moves(loop):
    five = loop(steps=5, every_steps=2, export=False)

    def unmount():
        five.folder.checkpoints.rename(five.folder.root.parent / "elsewhere")

    # Before the second checkpoint begins, the first is complete.
    five.script.meanwhile["update 5"] = unmount
    with pytest.raises(CheckpointError, match=r"the run completed one of step [24]"):
        await train(five, errors={"update 5": LOST})
    assert len(five.folder.metrics_jsonl.read_text().splitlines()) == 4


async def test_restarts_are_bounded(loop):
    two = loop(steps=2, max_restarts=0)
    with pytest.raises(WorkerLost, match="actor-1 died"):
        await train(two, errors={"update 1": LOST})
    assert "restart" not in two.script.journal


async def test_a_worker_that_is_lost_again_in_its_restart_is_started_once_more(loop):
    """Ray places on a node that is gone until it knows."""
    two = loop(steps=2, max_restarts=2, export=False)
    script = two.script
    script.meanwhile["restart"] = lambda: script.meanwhile.update(restart=lambda: script.errors.clear())
    await train(two, errors={"update 1": LOST, "restart": WorkerLost("starting: actor-1 died")})
    after = two.script.journal[two.script.journal.index("update 1") + 1 :]
    assert after[:4] == ["restart", "restart", "first prompt", "publish 0"]
    assert "starting: actor-1 died Going back to step 0 of 2; restart 2 of 2" in two.said()


async def test_a_worker_that_is_lost_in_every_restart_ends_the_run(loop):
    two = loop(steps=2, max_restarts=2)
    with pytest.raises(WorkerLost, match="starting: actor-1 died"):
        await train(two, errors={"update 1": LOST, "restart": WorkerLost("starting: actor-1 died")})
    assert two.script.journal.count("restart") == 2


async def test_any_other_failure_ends_the_run(loop):
    two = loop(steps=2)
    with pytest.raises(TrainingError):
        await train(two, errors={"update 1": TrainingError("the loss is nan")})
    assert "restart" not in two.script.journal
