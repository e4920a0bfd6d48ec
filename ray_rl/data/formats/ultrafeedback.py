"""UltraFeedback as published: four answers to an instruction, each rated in several aspects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_rl.data.columns import shorten
from ray_rl.data.formats.fields import Fields, is_number
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.ranking import best_and_lower
from ray_rl.data.formats.record import Comparison
from ray_rl.errors import DataError


def comparisons(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns the answer with the best mean rating, and one with a lower mean.

    The ratings count, and not `overall_score`, of which many were wrong at first (10 in place of 1); "N/A" does not
    count, and neither does an answer without ratings. The system messages, one for each answer, are not in the prompt.
    """
    (row,) = rows
    instruction = row.text("instruction")
    answers = []
    for completion in row.each("completions"):
        ratings = _ratings(completion.inner("annotations"))
        if ratings:
            answers.append((sum(ratings) / len(ratings), completion.text("response")))
    return [Comparison(instruction, *best_and_lower(answers, prompt=instruction))]


def _ratings(annotations: Fields) -> list[float]:
    ratings = []
    for aspect, value in annotations.values.items():
        if value is None:
            continue
        rating = annotations.inner(aspect).value("Rating") if isinstance(value, Mapping) else value
        if is_number(rating) or (isinstance(rating, str) and rating.strip().isdecimal()):
            ratings.append(float(rating))
        elif rating not in (None, "N/A"):
            raise DataError(f"{annotations.place(aspect)}.Rating is {shorten(rating)}; write a number or 'N/A'")
    return ratings


FORMAT = Format(
    name="ultrafeedback",
    wanted="comparison",
    line="rated answers of UltraFeedback: the one with the best mean rating, against one drawn from the worse ones",
    columns=("instruction", "completions"),
    conversion=comparisons,
)
