"""HelpSteer2: consecutive rows with ratings of one prompt's answers, or rows with two answers and a strength."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray_rl.data.formats.content import answer_to
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.ranking import TIE, best_and_lower
from ray_rl.data.formats.record import Comparison, Content, Unusable
from ray_rl.data.messages import role_of
from ray_rl.types import Message

_MARKER = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
"""The text before each turn of a conversation, except the first."""


def rated(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns the more helpful answer of the rows with one prompt, and a less helpful one.

    `helpfulness` decides alone, as in the preference half of the data set.
    """
    text = rows[0].text("prompt")
    best, lower = best_and_lower([(row.number("helpfulness"), row.text("response")) for row in rows], prompt=text)
    return [_comparison(text, best, lower)]


def preferred(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns the pair of a row, by the sign of `preference_strength`: a negative one prefers the first answer."""
    (row,) = rows
    first, second, strength = row.text("response_1"), row.text("response_2"), row.number("preference_strength")
    if strength == 0:
        raise Unusable(TIE)
    return [_comparison(row.text("prompt"), *((first, second) if strength < 0 else (second, first)))]


def _comparison(text: str, chosen: str, rejected: str) -> Comparison:
    prompt = _prompt(text)
    return Comparison(prompt, answer_to(prompt, chosen), answer_to(prompt, rejected))


def _prompt(text: str) -> Content:
    """Returns the prompt as text, or as messages if it has several turns."""
    first, *rest = _MARKER.split(text)
    if not rest:
        return text
    turns = [Message(role_of(name.lower()), said) for name, said in zip(rest[::2], rest[1::2], strict=True)]
    return (Message("user", first), *turns)


RATED = Format(
    name="helpsteer2",
    wanted="comparison",
    line="rated answers of HelpSteer2 in consecutive rows: the more helpful one, against the other",
    columns=("prompt", "response", "helpfulness"),
    conversion=rated,
    joined_by="prompt",
)


PREFERRED = Format(
    name="helpsteer2_preference",
    wanted="comparison",
    line="pairs of HelpSteer2, by the sign of preference_strength",
    columns=("prompt", "response_1", "response_2", "preference_strength"),
    conversion=preferred,
)
