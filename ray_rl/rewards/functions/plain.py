"""Reward functions: `(completions, **columns) -> list[float | None]`, None = no opinion.

Columns arrive as lists, one entry a completion. Each function judges every completion on its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from itertools import islice
from typing import Any, Literal, SupportsFloat

from ray_rl.data.columns import shorten
from ray_rl.rewards.functions.choices import choice_answer, choice_gold
from ray_rl.rewards.functions.math_text import math_gold, quick_verdict
from ray_rl.rewards.functions.numbers import number_answer, number_gold
from ray_rl.types import FinishReason


def number(
    completions: Sequence[str], *, answer: Sequence[Any], finish_reasons: Sequence[FinishReason], require_stop: bool
) -> list[float | None]:
    """1 if the number that the completion answers with equals the column's, else 0; None where the column is None.

    The completion's number is that of its last box, or else the last one behind its thinking.

    Args:
        completions: decoded text.
        answer: numbers, or text with exactly one; of "... #### 42" (GSM8K) what follows the hashes.
        finish_reasons: how each completion ended.
        require_stop: 0 for a completion that did not end by itself: its last number need not be its answer.

    Raises:
        DataError: an answer that is not exactly one number: the ground truth is wrong, not the completion.
    """
    scores: list[float | None] = []
    for text, truth, reason in zip(completions, answer, finish_reasons, strict=True):
        gold = number_gold(truth)
        is_whole = reason == "stop" or not require_stop
        scores.append(None if gold is None else float(is_whole and number_answer(text) == gold))
    return scores


def choice(
    completions: Sequence[str],
    *,
    answer: Sequence[Any],
    finish_reasons: Sequence[FinishReason],
    require_stop: bool,
    letters: str,
) -> list[float | None]:
    """1 if the completion chooses the column's letter, else 0; None where the column is None.

    Args:
        completions: decoded text.
        answer: letters, also as "(B)" or "B. Paris".
        finish_reasons: how each completion ended.
        require_stop: 0 for a completion that did not end by itself.
        letters: those that are choices.

    Raises:
        DataError: an answer that is not exactly one of the letters.
    """
    scores: list[float | None] = []
    for text, truth, reason in zip(completions, answer, finish_reasons, strict=True):
        gold = choice_gold(truth, letters=letters)
        is_whole = reason == "stop" or not require_stop
        scores.append(None if gold is None else float(is_whole and choice_answer(text) == gold))
    return scores


def quick_math_verify(
    completions: Sequence[str], *, answer: Sequence[Any], finish_reasons: Sequence[FinishReason], require_stop: bool
) -> list[float | Literal["undecided"] | None]:
    """The verdicts of `math_verify` that need no algebra, and "undecided" for the others. Safe in the driver.

    Raises:
        DataError: an answer that is not exactly one expression, as far as its text tells.
    """
    verdicts: list[float | Literal["undecided"] | None] = []
    for text, truth, reason in zip(completions, answer, finish_reasons, strict=True):
        gold = math_gold(truth)
        if gold is None:
            verdicts.append(None)
            continue
        verdict = quick_verdict(text, gold) if reason == "stop" or not require_stop else 0.0
        verdicts.append("undecided" if verdict is None else verdict)
    return verdicts


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


def plain_scores(returned: Any, *, expected: int) -> tuple[list[float | str | None], int]:
    """What a user's function returned, as plain floats: a tensor would drag its library into the caller's process.

    Args:
        returned: whatever it is.
        expected: number of scores that are wanted; at most one more is read of what has no length.

    Returns:
        A float or None for as many as are expected, the repr of what is neither, for the caller to name; and how many
        the function returned.

    Raises:
        TypeError: not a list: text, bytes and what has no order would give numbers that mean something else.
    """
    if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | bytearray | Mapping | Set):
        raise TypeError(f"returned {shorten(returned)}, not a list with a number or None for each completion")
    values = list(islice(returned, expected + 1))
    count = len(returned) if isinstance(returned, Sized) else len(values)
    return [_plain(value) for value in values[:expected]], count


def _plain(value: Any) -> float | str | None:
    if value is None:
        return None
    return float(value) if isinstance(value, SupportsFloat) else shorten(value)
