import numpy as np
import pytest

from ray_rl.checkpoint.groups import prompt_from_json, prompt_to_json, read_groups, write_groups
from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.errors import CheckpointError
from ray_rl.types import Completion, Message, Prompt, Rollout, RolloutGroup, ToolCall, Turn
from tests import make
from tests.make import completion, rollout


def prompt(number: int, **columns) -> Prompt:
    messages = (Message("system", "be brief"), Message("user", f"question {number}"))
    return Prompt(f"train.jsonl:{number}", (1, 151_935, number), f"question {number} \u00e4\ud800", columns, messages)


def group(number: int, lengths: tuple[int, ...], **columns) -> RolloutGroup:
    random = np.random.default_rng(number)
    rollouts = [
        rollout(
            answer(random, length),
            reward=None if length == 0 else 0.1 * length,
            parts={"number": None, "length": -float(length)},
        )
        for length in lengths
    ]
    return make.group(*rollouts, prompt=prompt(number, **columns))


def answer(random: np.random.Generator, length: int) -> Completion:
    return completion(
        random.integers(0, 151_936, length),
        f"answer {length}\n",
        finish_reason="length",
        logprobs=-random.exponential(size=length),
        versions=np.sort(random.integers(0, 3, length)),
    )


def as_plain(groups: list[RolloutGroup]) -> list:
    """Everything of the groups, arrays as their dtype and bytes."""
    return [(each.prompt, [as_tuple(rollout) for rollout in each.rollouts]) for each in groups]


def as_tuple(rollout: Rollout) -> tuple:
    dense = None if rollout.token_rewards is None else (rollout.token_rewards.dtype, rollout.token_rewards.tobytes())
    return rollout.reward, dict(rollout.reward_parts), rollout.stop, dense, [as_tuple_turn(t) for t in rollout.turns]


def as_tuple_turn(turn: Turn) -> tuple:
    sampled = turn.completion
    arrays = [(a.dtype, a.tobytes()) for a in (sampled.token_ids, sampled.logprobs, sampled.versions)]
    return turn.observation, turn.messages, turn.reward, sampled.finish_reason, sampled.text, arrays


@pytest.mark.parametrize("lengths", [[], [(3, 5)], [(1, 0), (7, 2)], [(0, 0)]])
def test_groups_come_back_bit_for_bit(tmp_path, lengths):
    groups = [group(i, each, answer="7", hints=["a", 2], nested={"x": None}) for i, each in enumerate(lengths)]
    write_groups(tmp_path, groups)
    assert as_plain(read_groups(tmp_path)) == as_plain(groups)


def test_an_episode_of_two_turns_comes_back_bit_for_bit(tmp_path):
    first, second = answer(np.random.default_rng(1), 3), answer(np.random.default_rng(2), 2)
    calls = (ToolCall("add", {"a": 1}), ToolCall("", None, error="Expecting value at character 3"))
    reply = Turn((7, 8), second, reward=0.1, messages=(Message("tool", "12"),), tool_calls=calls, metrics={"calls": 2})
    episode = rollout(first, reply, reward=1.0, stop="turns", token_rewards=[0.1, 0, 0, 0, 0, 0, 1 / 3])
    groups = [make.group(episode, rollout(second), prompt=prompt(0))]
    write_groups(tmp_path, groups)
    assert as_plain(read_groups(tmp_path)) == as_plain(groups)


def test_groups_that_version_0_1_wrote_are_read(tmp_path):
    write_groups(tmp_path, [group(0, (3, 5))])
    (found,) = read_json(tmp_path / "groups.json")
    for each in found["rollouts"]:
        (turn,) = each.pop("turns")
        del each["stop"], each["token_rewards"]
        each |= {key: turn[key] for key in ("length", "finish_reason", "text")}
    write_json(tmp_path / "groups.json", [found])
    assert as_plain(read_groups(tmp_path)) == as_plain([group(0, (3, 5))])


def test_a_prompt_comes_back():
    given = prompt(3, answer=1.5, is_hard=True)
    assert prompt_from_json(prompt_to_json(given)) == given


@pytest.mark.parametrize("value", [object(), (1, 2), {1: "a"}, float("nan"), np.float32(1.0)])
def test_a_column_that_would_not_come_back_is_named(value):
    with pytest.raises(
        CheckpointError, match=r"train\.jsonl:3: column 'answer' is a \w+, which a checkpoint cannot hold"
    ):
        prompt_to_json(prompt(3, answer=value))


def test_what_is_no_file_of_groups_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_groups(tmp_path)
    write_groups(tmp_path, [group(0, (3, 5))])
    tokens = (tmp_path / "tokens.safetensors").read_bytes()
    (tmp_path / "tokens.safetensors").write_bytes(tokens[: len(tokens) // 2])
    with pytest.raises(CheckpointError, match="no scored groups"):
        read_groups(tmp_path)
