"""Rewards for answers that are one equation: "17 + 25 = 42"."""

import re
from typing import Any

EQUATION = re.compile(r"\d+ \+ \d+ = (\d+)\.?")


def right_equation(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """Returns the scores of all completions of one prompt; `answer` is the column of that name, one entry each."""
    return [score(text.strip(), gold) for text, gold in zip(completions, answer, strict=True)]


def score(text: str, gold: str) -> float:
    """Returns 1 for an equation with the right sum, 0.2 for one with another sum, and 0 for any other text."""
    found = EQUATION.fullmatch(text)
    if found is None:
        return 0.0
    return 1.0 if found[1] == gold else 0.2
