"""Compares mathematical answers with the `math-verify` library. It can hang: use it only in a worker process."""

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

# It warns at every call that its own time limit is off. That limit needs signals and the main thread; ours kills.
logging.getLogger("math_verify").setLevel(logging.ERROR)

EXPRESSION_CHARACTERS = 2000
"""A longer expression is not an answer: the library takes seconds for a thousand terms."""
_LATEX = (LatexExtractionConfig(),)


def math_verify(
    completions: Sequence[str], *, answer: Sequence[Any], finish_reasons: Sequence[FinishReason], require_stop: bool
) -> list[float | None]:
    r"""Returns 1 if the answer of the completion equals that of the column, else 0; None if the column is None.

    Args:
        completions: decoded text.
        answer: LaTeX, words or numbers; in "... #### 42" (GSM8K), the part after the hashes.
        finish_reasons: how each completion ended.
        require_stop: return 0 for a completion that was cut off, because its last expression may not be its answer.

    Raises:
        DataError: the value of the column is not exactly one expression, so the data is wrong.
    """
    return [
        _score(text if reason == "stop" or not require_stop else "", truth)
        for text, truth, reason in zip(completions, answer, finish_reasons, strict=True)
    ]


def check_gold(value: Any) -> str | None:
    """Returns what is wrong with a gold; None if it is one expression. Hangs if it cannot be compared."""
    try:
        gold = math_gold(value)
        if gold is not None and needs_algebra(gold) and not is_compared_as_text(gold) and not _is_read(_parsed(gold)):
            raise _not_read(value)
        _score(r"\boxed{1}", value)  # some can be parsed but not compared: 9^{9^{9^{9}}}
    except DataError as error:
        return str(error)
    return None


def _not_read(value: Any) -> DataError:
    return DataError(f"math-verify finds no expression in the answer {shorten(value)}; correct the data")


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
        raise _not_read(answer)
    if len(candidate.text) > EXPRESSION_CHARACTERS:
        return 0.0
    given = _parsed(spelled(candidate.text)) if candidate.is_exact else _found(candidate.text)
    equal = verify(list(parsed), list(given), timeout_seconds=None, allow_set_relation_comp=True)
    return float(equal)


def _is_read(parsed: Sequence[Any]) -> bool:
    """Returns whether the library found an expression in a text, and not only the text itself."""
    return any(not isinstance(each, str) for each in parsed)


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """Returns a whole text as one expression, and its spelling."""
    return tuple(parse(f"${text}$", _LATEX, parsing_timeout=None))


# The libraries load more modules at their first use. Do it now, so that it does not use up the time limit of a call.
verify(list(_parsed("x^2")), list(_parsed(r"x \cdot x")), timeout_seconds=None)


def _found(text: str) -> list[Any]:
    """Returns the last expression that the library finds in a text."""
    return list(parse(text, parsing_timeout=None))
