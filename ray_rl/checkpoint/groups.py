"""Stores prompts and scored groups that an asynchronous run has sampled and not yet trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.checkpoint.tensors import save_tensors
from ray_rl.errors import CheckpointError
from ray_rl.types import Completion, Message, Prompt, Rollout, RolloutGroup, ToolCall, Turn

TOKENS = ("token_ids", "logprobs", "versions")
"""Arrays of a completion."""


def prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    """Returns the prompt with everything that its rewards need.

    Raises:
        CheckpointError: a column holds a value that JSON cannot represent; the message names it.
    """
    for column, value in prompt.columns.items():
        try:
            is_same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            is_same = False
        if not is_same:
            raise CheckpointError(
                f"{prompt.id}: column {column!r} is a {type(value).__name__}, which a checkpoint cannot hold; give the "
                "data source columns of text, numbers, booleans, lists and dictionaries with text for keys"
            )
    messages = [asdict(message) for message in prompt.messages]
    return asdict(prompt) | {"token_ids": list(prompt.token_ids), "messages": messages}


def prompt_from_json(found: Mapping[str, Any]) -> Prompt:
    """Reverts `prompt_to_json`."""
    return Prompt(
        id=found["id"],
        token_ids=tuple(found["token_ids"]),
        text=found["text"],
        columns=found["columns"],
        messages=tuple(Message(**message) for message in found["messages"]),
        is_conversation=found.get("is_conversation", False),
    )


def write_groups(folder: Path, groups: Sequence[RolloutGroup]) -> None:
    """Writes two files into a folder: tokens as safetensors, the rest as JSON.

    Raises:
        CheckpointError: the file system refuses, or JSON cannot represent a column of a prompt.
    """
    from torch import from_numpy

    write_json(folder / "groups.json", [_group_to_json(group) for group in groups])
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [turn.completion for rollout in rollouts for turn in rollout.turns]
    arrays = {
        name: from_numpy(np.concatenate([getattr(completion, name) for completion in completions]))
        for name in (TOKENS if completions else ())
    }
    save_tensors(folder / "tokens.safetensors", arrays)


def read_groups(folder: Path) -> list[RolloutGroup]:
    """Reverts `write_groups`, bit for bit.

    Also reads files of version 0.1, in which a rollout is a single completion.

    Raises:
        CheckpointError: `write_groups` did not write the files.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    groups = read_json(folder / "groups.json")
    try:
        tokens = load_file(folder / "tokens.safetensors")
        lengths = [turn["length"] for group in groups for rollout in group["rollouts"] for turn in _turns_of(rollout)]
        ends = np.cumsum(lengths)[:-1]
        split = {name: iter(np.split(array, ends)) for name, array in tokens.items()}
        return [_group_from_json(group, split) for group in groups]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise CheckpointError(f"{folder}: no scored groups: {error!r}; resume from another checkpoint") from error


def _group_to_json(group: RolloutGroup) -> dict[str, Any]:
    rollouts = [
        {
            "turns": [_turn_to_json(turn) for turn in rollout.turns],
            "stop": rollout.stop,
            "reward": rollout.reward,
            "reward_parts": dict(rollout.reward_parts),
            "token_rewards": None if rollout.token_rewards is None else rollout.token_rewards.tolist(),
        }
        for rollout in group.rollouts
    ]
    return {"prompt": prompt_to_json(group.prompt), "rollouts": rollouts}


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    return {
        "observation": list(turn.observation),
        "messages": [asdict(message) for message in turn.messages],
        "length": len(turn.completion.token_ids),
        "finish_reason": turn.completion.finish_reason,
        "text": turn.completion.text,
        "reward": turn.reward,
        "tool_calls": [asdict(call) for call in turn.tool_calls],
        "metrics": dict(turn.metrics),
    }


def _turns_of(rollout: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Returns the turns of a rollout; in files of version 0.1 the rollout itself is its only turn."""
    if "turns" in rollout:
        turns: Sequence[Mapping[str, Any]] = rollout["turns"]
        return turns
    return [{**rollout, "observation": [], "messages": [], "reward": None}]


def _group_from_json(found: Mapping[str, Any], split: Mapping[str, Any]) -> RolloutGroup:
    rollouts = [
        Rollout(
            turns=tuple(_turn_from_json(turn, split) for turn in _turns_of(each)),
            reward=each["reward"],
            reward_parts=each["reward_parts"],
            stop=each["stop"] if "turns" in each else each["finish_reason"],
            token_rewards=None if each.get("token_rewards") is None else np.array(each["token_rewards"], np.float32),
        )
        for each in found["rollouts"]
    ]
    return RolloutGroup(prompt_from_json(found["prompt"]), rollouts)


def _turn_from_json(found: Mapping[str, Any], split: Mapping[str, Any]) -> Turn:
    arrays = {name: next(split[name]) for name in TOKENS}
    return Turn(
        observation=tuple(found["observation"]),
        completion=Completion(**arrays, finish_reason=found["finish_reason"], text=found["text"]),
        reward=found["reward"],
        messages=tuple(Message(**message) for message in found["messages"]),
        tool_calls=tuple(ToolCall(**call) for call in found.get("tool_calls", ())),
        metrics=found.get("metrics", {}),
    )
