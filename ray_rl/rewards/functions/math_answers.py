"""Equality of mathematical answers by the `math-verify` library. Loads sympy and may hang: for a worker process."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from ray_rl.data.columns import shorten
from ray_rl.errors import DataError
from ray_rl.rewards.functions.math_text import (
    candidate_of,
    is_compared_as_text,
    math_gold,
    needs_algebra,
    quick_verdict,
    same_text,
    spelled,
)
from ray_rl.types import FinishReason

# It warns at every call that its own time limit is off. It is: that one needs the main thread and signals, ours kills.
logging.getLogger("math_verify").setLevel(logging.ERROR)

EXPRESSION_CHARACTERS = 2000
"""A longer expression is no answer: its grammar takes seconds for a thousand terms."""
_LATEX = (LatexExtractionConfig(),)


def math_verify(
    completions: Sequence[str], *, answer: Sequence[Any], finish_reasons: Sequence[FinishReason], require_stop: bool
) -> list[float | None]:
    r"""1 if the completion's answer equals the column's, else 0; None where the answer is None.

    Args:
        completions: decoded text.
        answer: LaTeX, a word or a number; of "... #### 42" (GSM8K) what follows the hashes.
        finish_reasons: how each completion ended.
        require_stop: 0 for a completion that did not end by itself: its last expression need not be its answer.

    Raises:
        DataError: an answer that is not exactly one expression: the ground truth is wrong, not the completion.
    """
    return [
        _score(text if reason == "stop" or not require_stop else "", truth)
        for text, truth, reason in zip(completions, answer, finish_reasons, strict=True)
    ]


def check_golds(golds: Sequence[Any]) -> list[str | None]:
    """What is wrong with each gold; None for those that are one expression. Hangs on what cannot be compared."""
    problems: list[str | None] = []
    for gold in golds:
        try:
            _check_parses(gold)
            _score(r"\boxed{1}", gold)  # some can be parsed, and not be compared: 9^{9^{9^{9}}}
        except DataError as error:
            problems.append(str(error))
        else:
            problems.append(None)
    return problems


def _check_parses(value: Any) -> None:
    """Checks that the library finds an expression in a gold that takes algebra.

    Raises:
        DataError: not exactly one expression.
    """
    gold = math_gold(value)
    if gold is None or not needs_algebra(gold) or is_compared_as_text(gold):
        return
    if not _is_read(_parsed(gold)):
        raise DataError(f"math-verify finds no expression in the answer {shorten(value)}; correct the data")


def _score(text: str, answer: Any) -> float | None:
    gold = math_gold(answer)
    if gold is None:
        return None
    quick = quick_verdict(text, gold)
    if quick is not None:
        return quick
    parsed = _parsed(gold)
    candidate = candidate_of(text)
    if not _is_read(parsed):
        if is_compared_as_text(gold) or not needs_algebra(gold):
            return float(same_text(gold, spelled(candidate.text)))
        raise DataError(f"math-verify finds no expression in the answer {shorten(answer)}; correct the data")
    if len(candidate.text) > EXPRESSION_CHARACTERS:
        return 0.0
    given = _parsed(spelled(candidate.text)) if candidate.is_exact else _found(candidate.text)
    equal = verify(list(parsed), list(given), timeout_seconds=None, allow_set_relation_comp=True)
    return float(equal)


def _is_read(parsed: Sequence[Any]) -> bool:
    """Whether the library made an expression of a text, and did not only keep the text."""
    return any(not isinstance(each, str) for each in parsed)


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """All of a text as one expression, and its spelling."""
    return tuple(parse(f"${text}$", _LATEX, parsing_timeout=None))


# What the libraries load at their first use is loaded now: the time limit of a call is for the call alone.
verify(list(_parsed("x^2")), list(_parsed(r"x \cdot x")), timeout_seconds=None)


def _found(text: str) -> list[Any]:
    """The last expression that the library finds in a text."""
    return list(parse(text, parsing_timeout=None))
