"""Equality of mathematical answers by the `math-verify` library. Loads sympy and may hang: for a worker process."""

import logging
from collections.abc import Sequence
from typing import Any

from math_verify import parse, verify

from ray_rl.rewards.answers import final_answer

# It warns at every call that its own time limit is off. It is: that one needs the main thread and signals, ours kills.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def math_verify(completions: Sequence[str], *, answer: Sequence[Any]) -> list[float | None]:
    r"""1 if the completion's answer equals the column's, else 0; None where the answer is None.

    Args:
        completions: decoded text.
        answer: LaTeX or a number, with or without $ or \boxed; of "... #### 42" (GSM8K) what follows the hashes.

    Raises:
        ValueError: an answer that the library cannot parse: the ground truth is wrong, not the completion.
    """
    return [_score(text, truth) for text, truth in zip(completions, answer, strict=True)]


def _score(text: str, answer: Any) -> float | None:
    if answer is None:
        return None
    gold = final_answer(answer)
    # Without delimiters the library may settle for a number inside the expression.
    delimited = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
    parsed = parse(delimited, parsing_timeout=None)
    if not parsed:
        raise ValueError(f"math-verify finds no answer in {answer!r}; correct the data")
    return float(verify(parsed, parse(text, parsing_timeout=None), timeout_seconds=None))
