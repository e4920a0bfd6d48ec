"""A chosen and a rejected answer: text or messages, with the prompt apart or inside both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_rl.data.formats import hh_rlhf
from ray_rl.data.formats.content import read_answers, read_content
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.ranking import TIE
from ray_rl.data.formats.record import Comparison, Unusable

SWAPPED = "the rejected answer has the higher score"


def comparisons(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns the pair of a row, with the number in its column `margin` if there is one.

    The prompt is in the column `prompt` or, with ShareGPT's turns, `conversations`. Columns `score_chosen` and
    `score_rejected`, as in UltraFeedback binarized, must say that chosen is better.
    """
    (row,) = rows
    apart = next((name for name in ("prompt", "conversations") if row.values.get(name) is not None), None)
    given = None if apart is None else read_content(row, apart)
    prompt, (chosen, rejected) = read_answers(row, given, ["chosen", "rejected"])
    better, worse = row.optional_number("score_chosen"), row.optional_number("score_rejected")
    if better is not None and worse is not None and better <= worse:
        raise Unusable(TIE if better == worse else SWAPPED)
    return [Comparison(prompt, chosen, rejected, row.optional_number("margin"))]


def _is_no_dialogue(values: Mapping[str, Any]) -> bool:
    return not hh_rlhf.looks(values)


FORMAT = Format(
    name="preference",
    wanted="comparison",
    line="chosen and rejected answers, with the prompt apart or inside both",
    columns=("chosen", "rejected"),
    conversion=comparisons,
    looks=_is_no_dialogue,
)
