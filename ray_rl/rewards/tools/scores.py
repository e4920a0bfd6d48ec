"""Scores of an episode with calls of tools, in [0, 1]; None for no opinion. They read the turns, and never the text.

The metrics of the turns are those of an environment with tools: `calls`, `valid`, `errors` and `recovered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ray_rl.rewards.tools.right_calls import ExpectedCall, are_right, is_right
from ray_rl.types import Rollout, ToolCall


def tool_format(rollout: Rollout) -> float | None:
    """Returns the share of turns whose calls are all well formed, of the turns with a call; None without a call."""
    turns = [turn for turn in rollout.turns if turn.tool_calls]
    good = sum(all(call.error is None for call in turn.tool_calls) for turn in turns)
    return good / len(turns) if turns else None


def valid_calls(rollout: Rollout) -> float | None:
    """Returns the share of calls that name a tool and have arguments that fit it; None without a call.

    A call is valid also if its tool failed. Malformed calls are not valid.
    """
    calls = sum(len(turn.tool_calls) for turn in rollout.turns)
    valid = sum(turn.metrics.get("valid", 0.0) for turn in rollout.turns)
    return min(1.0, valid / calls) if calls else None


def right_call(
    rollout: Rollout, expected: Sequence[ExpectedCall] | None, *, calls: Literal["first", "all"]
) -> float | None:
    """Returns 1 if the calls of the episode are the expected ones, else 0; None if nothing is expected.

    Args:
        rollout: the episode.
        expected: the expected calls; [] if no call is right, and None for no opinion.
        calls: "first" compares the first call of the episode with the first expected one, "all" compares all calls,
            in any order. Malformed calls count, and are wrong.
    """
    if expected is None:
        return None
    made: list[ToolCall] = [call for turn in rollout.turns for call in turn.tool_calls]
    if calls == "first" and expected:
        return float(bool(made) and is_right(made[0], expected[0]))
    return float(are_right(made, expected))


def recovery(rollout: Rollout) -> float | None:
    """Returns the share of turns with an error that are followed by a turn with a call that worked.

    An error is one of the call or of its tool. One in the last turn is not recovered from. None without an error.
    """
    turns = rollout.turns
    failed = [index for index, turn in enumerate(turns) if turn.metrics.get("errors", 0.0) > 0]
    recovered = [i for i in failed if i + 1 < len(turns) and turns[i + 1].metrics.get("recovered", 0.0) > 0]
    return len(recovered) / len(failed) if failed else None
