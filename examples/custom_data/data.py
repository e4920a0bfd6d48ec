"""Questions that a function makes, instead of rows of a file."""

import random


def comparisons(size: int, largest: int, seed: int = 0) -> list[dict[str, str]]:
    """Returns rows with a `prompt`, and with the `answer` that the reward compares with."""
    draw = random.Random(seed)
    rows = []
    for _ in range(size):
        a, b = draw.sample(range(largest + 1), 2)
        rows.append({"prompt": f"Which number is larger, {a} or {b}? Answer with a number.", "answer": str(max(a, b))})
    return rows
