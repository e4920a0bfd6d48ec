"""PRM800K: solutions that people built step by step, with ratings of the steps and of their alternatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_rl.data.columns import shorten
from ray_rl.data.formats.fields import Fields, is_number
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Steps, Unusable
from ray_rl.errors import DataError

_LABELS = {1: 1.0, 0: 1.0, -1: 0.0}
"""The labels of ratings. A neutral step counts as right, as in the final models of the paper (arXiv:2305.20050)."""


def looks(values: Mapping[str, Any]) -> bool:
    """Returns whether the label holds steps."""
    return isinstance(values["label"], Mapping) and "steps" in values["label"]


def steps(rows: Sequence[Fields]) -> list[Steps]:
    """Returns the steps that were chosen as one record, and each alternative to one of them as another.

    A record with an alternative ends there; the steps before it are context. Steps without a rating (those that people
    wrote, and flagged ones) are context too. Rows that served to check the labelers are not used.
    """
    (row,) = rows
    if row.values.get("is_quality_control_question") or row.values.get("is_initial_screening_question"):
        raise Unusable("questions of quality control or screening")
    label = row.inner("label")
    if label.values.get("finish_reason") == "bad_problem":
        raise Unusable("a problem that the labeler found bad")
    problem = row.inner("question").text("problem")
    path: list[tuple[str, float | None]] = []
    alternatives = []
    for step in label.each("steps"):
        completions = [(each.text("text").strip(), _rating(each)) for each in step.each("completions")]
        chosen = _chosen(step, len(completions))
        context = tuple(text for text, _ in path)
        for index, (text, rating) in enumerate(completions):
            if index != chosen and rating is not None:
                alternatives.append(Steps(problem, (*context, text), (*[None] * len(context), rating)))
        if chosen is not None:
            path.append(completions[chosen])
        elif step.values.get("human_completion") is not None:
            path.append((step.inner("human_completion").text("text").strip(), None))
    solution = Steps(problem, tuple(text for text, _ in path), tuple(rating for _, rating in path))
    records = [*([solution] if any(rating is not None for rating in solution.labels) else []), *alternatives]
    if not records:
        raise Unusable("no step with a rating")
    return records


def _rating(completion: Fields) -> float | None:
    rating = completion.value("rating")
    if rating is None or completion.values.get("flagged"):
        return None
    if not is_number(rating) or rating not in _LABELS:
        raise DataError(f"{completion.place('rating')} is {shorten(rating)}; write -1, 0, 1 or null")
    return _LABELS[rating]


def _chosen(step: Fields, count: int) -> int | None:
    chosen = step.values.get("chosen_completion")
    if chosen is None:
        return None
    if isinstance(chosen, bool) or chosen not in range(count):
        raise DataError(
            f"{step.place('chosen_completion')} is {shorten(chosen)}; write null, or the index of one of the {count} "
            "completions"
        )
    return int(chosen)


FORMAT = Format(
    name="prm800k",
    wanted="steps",
    line="solutions of PRM800K with rated steps; alternatives to a step are records that end there",
    columns=("question", "label"),
    conversion=steps,
    looks=looks,
)
