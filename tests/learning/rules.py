"""Preferences with a known rule, over two answers to an addition. The same seed always gives the same rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

Rule = Literal["order", "correct", "shuffled"]
"""order: the answer that begins with the number is better than one of the same words that ends with it. correct: the
right sum is better than a wrong one, in the same sentence. shuffled: the answers of `order`, and a coin decides."""
QUESTIONS = ("Add {a} and {b}.", "How much is {a} plus {b}?")
"""SmolLM2-135M answers these with the number at the end; after "What is {a} + {b}?" it sometimes does not."""
SENTENCES = ("The answer is {}.", "It is {}.", "The sum is {}.")
ERRORS = (-20, -10, -3, -2, -1, 1, 2, 3, 10, 20)


def comparisons(rule: Rule, *, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Rows in TRL's form of preferences."""
    draw = random.Random(f"{rule}/{seed}")
    for _ in range(count):
        a, b = draw.randint(10, 99), draw.randint(10, 99)
        question = draw.choice(QUESTIONS).format(a=a, b=b)
        if rule == "correct":
            sentence = draw.choice(SENTENCES)
            answers = [sentence.format(a + b), sentence.format(a + b + draw.choice(ERRORS))]
        else:
            noun = draw.choice(("sum", "total", "result"))
            answers = [f"{a + b} is the {noun} of {a} and {b}.", f"The {noun} of {a} and {b} is {a + b}."]
        if rule == "shuffled":
            draw.shuffle(answers)
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in answers)
        yield {"prompt": [{"role": "user", "content": question}], "chosen": chosen, "rejected": rejected}


def judged(pairs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Both answers of each pair as rows of their own, in TRL's form for KTO."""
    for pair in pairs:
        for side, label in (("chosen", True), ("rejected", False)):
            yield {"prompt": pair["prompt"], "completion": pair[side], "label": label}


def write(rows: Iterable[Mapping[str, Any]], to: Path) -> Path:
    """Writes rows as JSONL."""
    to.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return to
