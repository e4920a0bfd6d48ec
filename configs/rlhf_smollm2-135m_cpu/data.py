"""Writes demonstrations.jsonl and comparisons.jsonl, which are next to this file.

The answers are of two forms of the same length. Half of the demonstrations have each form; in every comparison the form
that begins with the number is better. That is the known rule from which the reward model learns.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

LARGEST = 99
"""As in ppo.yaml, which asks questions of the same kind."""


def demonstrations(count: int) -> Iterator[dict[str, object]]:
    """Yields conversations; whether the number comes first is random."""
    draw = random.Random(1)
    for _ in range(count):
        question, first, last = _problem(draw)
        yield {"messages": [*question, *draw.choice([first, last])]}


def comparisons(count: int) -> Iterator[dict[str, object]]:
    """Yields questions with a better answer, in which the number comes first, and a worse one."""
    draw = random.Random(2)
    for _ in range(count):
        question, first, last = _problem(draw)
        yield {"prompt": question, "chosen": first, "rejected": last}


def _problem(draw: random.Random) -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    a, b = draw.randint(0, LARGEST), draw.randint(0, LARGEST)
    question = {"role": "user", "content": f"What is {a}+{b}? Answer with a number."}
    texts = (f"{a + b} is the sum of {a} and {b}.", f"The sum of {a} and {b} is {a + b}.")
    first, last = ({"role": "assistant", "content": text} for text in texts)
    return [question], [first], [last]


def main() -> None:
    """Writes both files."""
    for name, rows in (("demonstrations", demonstrations(320)), ("comparisons", comparisons(480))):
        lines = [json.dumps(row) + "\n" for row in rows]
        Path(__file__).with_name(f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
