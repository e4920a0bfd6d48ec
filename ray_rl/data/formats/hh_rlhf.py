"""Anthropic's HH-RLHF: two whole dialogues as text, which differ in their last answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_rl.data.formats.content import DIFFERENT
from ray_rl.data.formats.dialogue import MARKER, before_last_answer, joined, turns
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Comparison, Unusable


def looks(values: Mapping[str, Any]) -> bool:
    """Returns whether one of the answers is text that begins with a marker: the other one may be damaged."""
    return any(isinstance(values[name], str) and MARKER.match(values[name]) for name in ("chosen", "rejected"))


def comparisons(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns the pair of a row: the last answers of its dialogues, after the turns that precede both.

    The turns are compared whole: a common prefix of characters would take the words with which both answers begin.
    """
    (row,) = rows
    dialogues = [turns(row.text(name), where=row.place(name)) for name in ("chosen", "rejected")]
    (before, chosen), (also_before, rejected) = map(before_last_answer, dialogues)
    if before != also_before:
        raise Unusable(DIFFERENT)
    # Where the last two turns are the assistant's, joining makes the first of them part of both answers.
    better, worse = joined([*before, chosen]), joined([*before, rejected])
    return [Comparison(better[:-1], better[-1:], worse[-1:])]


FORMAT = Format(
    name="hh_rlhf",
    wanted="comparison",
    line="dialogues of Anthropic's HH-RLHF, whose prompt is what precedes the last answer",
    columns=("chosen", "rejected"),
    conversion=comparisons,
    looks=looks,
)
