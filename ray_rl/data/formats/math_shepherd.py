"""Math-Shepherd: a question with a solution, in which a placeholder ends each step, and a copy with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_rl.data.columns import shorten
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Steps, Unusable
from ray_rl.errors import DataError

PLACEHOLDER = "\u043a\u0438"
"""The mark at the end of each step: two Cyrillic letters."""
FIRST = "Step 1:"
"""The text that follows the question."""

_LABELS = {"+": 1.0, "-": 0.0}


def looks(values: Mapping[str, Any]) -> bool:
    """Returns whether the input has the placeholder."""
    return isinstance(values["input"], str) and PLACEHOLDER in values["input"]


def steps(rows: Sequence[Fields]) -> list[Steps]:
    """Returns the steps of a row.

    The labels are what `label` has at the places of the placeholders: + and - also occur inside the text.
    """
    (row,) = rows
    texts = row.text("input").split(PLACEHOLDER)
    labels = _labels(row, texts)
    if texts.pop().strip():
        raise Unusable("a last step without a label")
    if not texts or FIRST not in texts[0]:
        raise Unusable("no 'Step 1:' where the question ends")
    question, _, first = texts[0].rpartition(FIRST)
    return [Steps(question.strip(), tuple(text.strip() for text in (f"{FIRST}{first}", *texts[1:])), labels)]


def _labels(row: Fields, texts: list[str]) -> tuple[float, ...]:
    """Returns the label after each text but the last."""
    labelled, place = row.text("label"), row.place("label")
    labels, position = [], 0
    for number, text in enumerate(texts, start=1):
        is_last = number == len(texts)
        end = len(labelled) if is_last else position + len(text)
        if labelled[position:end] != text:
            raise DataError(
                f"{place} differs from input in step {number}: {shorten(labelled[position:end])} instead of "
                f"{shorten(text)}; apart from the labels it must be the same text"
            )
        if not is_last and labelled[end : end + 1] not in _LABELS:
            raise DataError(
                f"{place} has {shorten(labelled[end : end + 1])} at the end of step {number}; write + or - in place "
                f"of {PLACEHOLDER!a}"
            )
        labels += [] if is_last else [_LABELS[labelled[end]]]
        position = end + 1
    return tuple(labels)


FORMAT = Format(
    name="math_shepherd",
    wanted="steps",
    line="solutions of Math-Shepherd, whose labels stand at the places of the placeholder",
    columns=("input", "label"),
    conversion=steps,
    looks=looks,
)
