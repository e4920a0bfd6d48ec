"""Reward functions: `(completions, **columns) -> list[float | None]`, None = no opinion.

Columns arrive as lists, one entry a completion. Each function judges every completion on its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

from ray_rl.rewards.answers import final_answer, last_number
from ray_rl.types import FinishReason


def number(
    completions: Sequence[str], *, answer: Sequence[Any], finish_reasons: Sequence[FinishReason], require_stop: bool
) -> list[float | None]:
    """1 if the last number of the completion equals the answer, else 0; None where the answer is None.

    Args:
        completions: decoded text.
        answer: numbers or text with a number; of "... #### 42" (GSM8K) what follows the hashes.
        finish_reasons: how each completion ended.
        require_stop: 0 for a completion that did not end by itself: its last number need not be its answer.

    Raises:
        ValueError: an answer without a number: the ground truth is wrong, not the completion.
    """
    return [
        None if truth is None else float(last_number(text) == _truth(truth) and (reason == "stop" or not require_stop))
        for text, truth, reason in zip(completions, answer, finish_reasons, strict=True)
    ]


def _truth(answer: Any) -> Any:
    value = last_number(final_answer(answer))
    if value is None:
        raise ValueError(f"the answer {answer!r} holds no number; use math_verify, or correct the data")
    return value


def regex(completions: Sequence[str], *, pattern: str) -> list[float | None]:
    """1 if the pattern is found in the completion (`re.search`, DOTALL), else 0.

    Some patterns take exponential time: run it where it can be killed.
    """
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.search(text) is not None) for text in completions]


def length(completions: Sequence[str], *, lengths: Sequence[int], target: int) -> list[float | None]:
    """-max(0, tokens - target) / target: 0 up to `target` tokens, -1 at twice that.

    Args:
        completions: not looked at.
        lengths: tokens of each completion, the end-of-sequence token included.
        target: tokens that cost nothing.
    """
    del completions
    return [-max(0, tokens - target) / target for tokens in lengths]


def plain_scores(returned: Any) -> list[float | str | None]:
    """What a user's function returned, as plain floats: a tensor would drag its library into the caller's process.

    Returns:
        A float or None per completion; the repr of what is neither, for the caller to name.

    Raises:
        TypeError: not a list.
    """
    if not isinstance(returned, Iterable) or isinstance(returned, str | Mapping):
        raise TypeError(f"returned {returned!r}, not a list with a number or None for each completion")
    return [_plain(value) for value in returned]


def _plain(value: Any) -> float | str | None:
    if value is None:
        return None
    return float(value) if isinstance(value, SupportsFloat) else repr(value)
