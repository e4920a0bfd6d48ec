import numpy as np
import pytest

from ray_rl.checkpoint.groups import prompt_from_json, prompt_to_json, read_groups, write_groups
from ray_rl.errors import CheckpointError
from ray_rl.types import Completion, Message, Prompt, Rollout, RolloutGroup


def prompt(number: int, **columns) -> Prompt:
    messages = (Message("system", "be brief"), Message("user", f"question {number}"))
    return Prompt(f"train.jsonl:{number}", (1, 151_935, number), f"question {number} \u00e4\ud800", columns, messages)


def group(number: int, lengths: tuple[int, ...], **columns) -> RolloutGroup:
    random = np.random.default_rng(number)
    rollouts = [
        Rollout(
            Completion(
                token_ids=random.integers(0, 151_936, length).astype(np.int32),
                logprobs=-random.exponential(size=length).astype(np.float32),
                versions=np.sort(random.integers(0, 3, length)).astype(np.int32),
                finish_reason="length",
                text=f"answer {length}\n",
            ),
            reward=None if length == 0 else 0.1 * length,
            reward_parts={"number": None, "length": -float(length)},
        )
        for length in lengths
    ]
    return RolloutGroup(prompt(number, **columns), rollouts)


def as_plain(groups: list[RolloutGroup]) -> list:
    """Everything of the groups, arrays as their dtype and bytes."""
    return [(each.prompt, [as_tuple(rollout) for rollout in each.rollouts]) for each in groups]


def as_tuple(rollout: Rollout) -> tuple:
    completion = rollout.completion
    arrays = [(a.dtype, a.tobytes()) for a in (completion.token_ids, completion.logprobs, completion.versions)]
    return rollout.reward, dict(rollout.reward_parts), completion.finish_reason, completion.text, arrays


@pytest.mark.parametrize("lengths", [[], [(3, 5)], [(1, 0), (7, 2)], [(0, 0)]])
def test_groups_come_back_bit_for_bit(tmp_path, lengths):
    groups = [group(i, each, answer="7", hints=["a", 2], nested={"x": None}) for i, each in enumerate(lengths)]
    write_groups(tmp_path, groups)
    assert as_plain(read_groups(tmp_path)) == as_plain(groups)


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
