"""A disk that is full when a checkpoint is written, and a checkpoint that is damaged afterwards: nothing is lost."""

import re
from collections import Counter

import pytest

from ray_rl.checkpoint.store import CheckpointStore
from tests.system.e2e.command import GROUP, PROMPTS, place_for, run
from tests.system.e2e.small_disk import run_on_small_disk

pytestmark = pytest.mark.faults

STEPS = 4
DISK_KIB = 18 * 1024
"""Room for two checkpoints of 7 MB, and not for the third, which is written before the first is deleted."""


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    place = place_for(
        tmp_path_factory.mktemp("full"),
        "full",
        steps=STEPS,
        data={"size": STEPS * PROMPTS},
        checkpoint={"every_steps": 1, "keep_last": 2, "export": False},
    )
    return run_on_small_disk(place, kib=DISK_KIB)


def test_it_says_which_checkpoint_had_no_room_and_what_to_do(full):
    assert full.code == 1, full.stdout + full.stderr
    assert "Traceback" not in full.stderr
    assert full.left_behind == []
    (message,) = [line for line in full.stderr.splitlines() if line.startswith("ray-rl: error: ")]
    assert re.search(r"checkpoints/\S*step_3\S*: .*No space left on device", message)
    assert "then resume" in message


def test_the_checkpoints_before_are_untouched(full):
    store = CheckpointStore(full.folder / "checkpoints", keep_last=2, keep_every=None)
    assert store.steps() == [1, 2]
    assert [store.load(step).step for step in (1, 2)] == [1, 2]
    assert {path.name for path in (full.folder / "checkpoints").iterdir()} == {"step_1", "step_2"}


@pytest.fixture(scope="module")
def resumed(full):
    """On a disk with room, from a copy whose newest checkpoint has one wrong byte."""
    folder = full.place / "runs" / "full"
    full.folder.rename(folder)
    file = folder / "checkpoints" / "step_2" / "actor" / "rank_0.safetensors"
    with file.open("r+b") as weights:
        weights.seek(-1, 2)
        last = weights.read(1)
        weights.seek(-1, 2)
        weights.write(bytes([last[0] ^ 1]))
    return run(full.place, "resume", str(folder))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(resumed):
    assert resumed.code == 0, resumed.stdout + resumed.stderr
    assert re.search(r"step_2.*actor/rank_0\.safetensors", resumed.stdout)
    assert f"resuming after step 1 of {STEPS}" in resumed.stdout


def test_every_prompt_of_the_epoch_is_trained_on_once(resumed):
    assert [line["step"] for line in resumed.metrics] == list(range(1, STEPS + 1))
    seen = Counter(sample["prompt_id"] for step in range(1, STEPS + 1) for sample in resumed.rollouts(step))
    assert len(seen) == STEPS * PROMPTS
    assert set(seen.values()) == {GROUP}
