"""Nectar: seven answers to a dialogue, ranked."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.formats.dialogue import joined, turns
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.ranking import best_and_lower
from ray_rl.data.formats.record import Comparison
from ray_rl.types import Message


def comparisons(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns the answer with rank 1, and one with a higher number."""
    (row,) = rows
    text = row.text("prompt")
    prompt = turns(text, where=row.place("prompt"))
    if prompt[-1] == Message("assistant", ""):  # the marker before the answer
        prompt.pop()
    answers = [(-answer.number("rank"), answer.text("answer")) for answer in row.each("answers")]
    chosen, rejected = best_and_lower(answers, prompt=text)
    return [Comparison(joined(prompt), (Message("assistant", chosen),), (Message("assistant", rejected),))]


FORMAT = Format(
    name="nectar",
    wanted="comparison",
    line="ranked answers of Nectar: the best one, against one drawn from the others",
    columns=("prompt", "answers"),
    conversion=comparisons,
)
