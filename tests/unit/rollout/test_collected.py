import pytest

from ray_rl.checkpoint.store import write_json
from ray_rl.errors import CheckpointError
from ray_rl.metrics.metric import EffectiveFraction, Last, Maximum, Mean, Total
from ray_rl.rollout.collected import Collected, Finished
from ray_rl.types import Prompt
from tests import make
from tests.make import completion, rollout

METRICS = [Mean("a", 1.5, 2), Total("b", 0.1), Maximum("c", -3.0), Last("d", 7), EffectiveFraction("e", 1.0, 2.0, 3)]


def group(number):
    sampled = completion(3, f"text {number}", versions=[1, 1, 2], logprobs=-0.1)
    prompt = Prompt(f"p/{number}", (1, 2), "?", {"answer": "3"})
    return make.group(rollout(sampled, reward=0.5, parts={"number": 0.5}), prompt=prompt)


def state():
    return Collected(
        source={"epoch": 1, "index": 3},
        admitted=9,
        accepted=6,
        in_flight=((7, Prompt("p/7", (4, 5), "??", {"answer": "1"})), (8, Prompt("p/8", (4,), "?", {}))),
        waiting=(Finished(6, group(6), METRICS),),
        refused=(Finished(4, group(4), []), Finished(5, group(5), METRICS[:1])),
        stale=2,
    )


def test_everything_comes_back(tmp_path):
    state().write(tmp_path)
    found, expected = Collected.read(tmp_path), state()
    for name in ("source", "admitted", "accepted", "in_flight", "stale"):
        assert getattr(found, name) == getattr(expected, name)
    for ours, theirs in zip((*found.waiting, *found.refused), (*expected.waiting, *expected.refused), strict=True):
        assert (ours.number, ours.metrics) == (theirs.number, theirs.metrics)
        assert ours.group.prompt == theirs.group.prompt
        (one,), (other,) = ours.group.rollouts, theirs.group.rollouts
        assert one.text == other.text
        assert one.logprobs.tobytes() == other.logprobs.tobytes()


@pytest.mark.parametrize("found", [{}, [], {"waiting": [], "refused": []}])
def test_another_file_is_no_state(tmp_path, found):
    Collected({}, 0, 0, (), (), (), 0).write(tmp_path)
    write_json(tmp_path / "rollouts" / "collector.json", found)
    with pytest.raises(CheckpointError, match="cannot be read as the saved position of the rollouts"):
        Collected.read(tmp_path)
