"""A run with adapters is killed in a publish, whole or in part, and ends with the bits of one that is left alone."""

import json
import re

import pytest

from tests.system.e2e.command import Ended, place_for, run
from tests.system.e2e.kill_points import PUBLISH, RECEIVE, SEND, call
from tests.system.e2e.test_kills import HOOK, Victim, assert_bits_are_equal

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1800)]

STEPS = 4
AUTO = ("train", "run.yaml", "--resume", "auto")
MATRICES = 28
"""Of the tiny model with adapters: each is merged once a publish."""
INSTALL = "ray_rl.weight_sync.receivers.adapter:install"
PRODUCT = "ray_rl.models.adapter:product"
LOAD = "ray_rl.weight_sync.receivers.loading:Loading.load"
OF_RECOVERY = ("engines/", "sync/bytes")
"""First words of metrics that count restarts. An engine that was restarted gets the whole model."""
IN_A_PUBLISH = {
    "separate": [
        call(SEND, 2),
        call(RECEIVE, 2),
        call(INSTALL, 2),
        call(INSTALL, 2, "after"),
        call(PUBLISH, 2, "after"),
    ],
    "merged": [call(PRODUCT, MATRICES + MATRICES // 2), call(SEND, 2, "after"), call(RECEIVE, 2), call(PUBLISH, 2)],
}
"""Moments of the first publish of trained weights, in which all processes are killed."""
ENGINE = {"separate": call(INSTALL, 3), "merged": call(LOAD, 6)}
"""The moment of a publish of trained weights in which the engine alone is killed."""
TRAINER = {"separate": call(SEND, 5), "merged": call(PRODUCT, 4 * MATRICES + MATRICES // 2)}
"""The same of the trainer, once the engine is back: its publish was repeated to no engine."""


def place(folder, mode: str):
    return place_for(
        folder,
        "kills",
        steps=STEPS,
        run={"name": "kills", "steps": STEPS, "deterministic": True},
        model={"path": "./model", "dtype": "float32", "adapter": {"rank": 4}},
        train={"learning_rate": 1e-2},
        weight_sync={"adapter": mode, "bucket_mib": 1},
        checkpoint={"every_steps": 1},
    )


@pytest.fixture(scope="module", params=IN_A_PUBLISH)
def mode(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(mode, tmp_path_factory) -> Ended:
    """A run that is left alone."""
    return Victim(place(tmp_path_factory.mktemp(f"alone-{mode}"), mode)).finish(*AUTO)


def test_a_run_killed_whole_in_publishes_of_adapters_is_the_run_left_alone(mode, alone, tmp_path):
    victim = Victim(place(tmp_path, mode), points=IN_A_PUBLISH[mode])
    victim.killed_at(IN_A_PUBLISH[mode], *AUTO)
    assert victim.kills == len(IN_A_PUBLISH[mode])
    assert_bits_are_equal(victim.finish(*AUTO), alone, steps=STEPS)


def test_a_run_whose_engine_then_trainer_is_killed_in_a_publish_of_adapters_is_the_run_left_alone(
    mode, alone, tmp_path
):
    victims = {"engine": ENGINE[mode], "actor": TRAINER[mode]}
    points = [point.at | {"alone": str(tmp_path / name)} for name, point in victims.items()]
    there = place(tmp_path, mode)
    ended = run(there, *AUTO, environment={"PYTHONPATH": str(HOOK), "KILL_AT": json.dumps(points)})
    assert ended.code == 0, ended.stdout + ended.stderr
    for name in victims:
        assert (tmp_path / name).is_file(), f"{name} was not killed"
    log = (ended.folder / "logs" / "driver.log").read_text()
    assert re.search(r"publishing version \d failed while .*rollout-0: vLLM's process ended", log)
    assert re.search(r"actor-0 died on .*Going back to step \d of 4; restart 1 of 3", log)
    assert_bits_are_equal(ended, alone, steps=STEPS, but_for=OF_RECOVERY)
