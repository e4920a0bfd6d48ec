"""Reward functions: `(completions, **columns) -> list[float | None]`, where None is no opinion.

Columns are lists with one entry for each completion. Each function judges every completion on its own.
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
    """Returns 1 if the answer of the completion is the number in the column, else 0; None if the column is None.

    The answer is the number in the last box, or else the last number after the thinking.

    Args:
        completions: decoded text.
        answer: numbers, or texts with exactly one number; in "... #### 42" (GSM8K), the part after the hashes.
        finish_reasons: how each completion ended.
        require_stop: return 0 for a completion that was cut off, because its last number may not be its answer.

    Raises:
        DataError: the value of the column is not exactly one number, so the data is wrong.
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
    """Returns 1 if the completion chooses the letter in the column, else 0; None if the column is None.

    Args:
        completions: decoded text.
        answer: letters, also as "(B)" or "B. Paris".
        finish_reasons: how each completion ended.
        require_stop: return 0 for a completion that was cut off.
        letters: the letters of the choices.

    Raises:
        DataError: the value of the column is not exactly one of the letters.
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
    """Returns the verdicts of `math_verify` that need no algebra, and "undecided" for the others. Safe in the driver.

    Raises:
        DataError: the text of the column shows that it is not exactly one expression.
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
    """Returns 1 if the pattern is found in the completion (`re.search`, DOTALL), else 0.

    Some patterns take exponential time: call it in a process that can be killed.
    """
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.search(text) is not None) for text in completions]


def length(completions: Sequence[str], *, lengths: Sequence[int], target: int) -> list[float | None]:
    """Returns -max(0, tokens - target) / target: 0 for at most `target` tokens, -1 for twice as many.

    Args:
        completions: not used.
        lengths: the number of tokens of each completion, including the end-of-sequence token.
        target: the largest length without a penalty.
    """
    del completions
    return [-max(0, tokens - target) / target for tokens in lengths]


def plain_scores(returned: Any, *, expected: int) -> tuple[list[float | str | None], int]:
    """Converts the result of a user's function to plain floats: a tensor would load its library in the driver, too.

    Args:
        returned: any value.
        expected: the number of completions. If `returned` has no length, at most one value more is read.

    Returns:
        For each completion a float or None, or the repr of a value that is neither; and the number of values returned.

    Raises:
        TypeError: it is not a list. Text, bytes, mappings and sets are refused, because their items are not scores.
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
