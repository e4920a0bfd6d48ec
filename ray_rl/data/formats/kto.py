"""Prompt, completion, and whether it is desirable."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.columns import shorten
from ray_rl.data.formats.content import read_answers, read_content
from ray_rl.data.formats.fields import UNQUOTED, Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Judged
from ray_rl.errors import DataError


def judged(rows: Sequence[Fields]) -> list[Judged]:
    """Returns the completion of a row with its label, which must be a boolean."""
    (row,) = rows
    label = row.value("label")
    if not isinstance(label, bool):
        raise DataError(
            f"{row.place('label')} is {shorten(label)}, a {type(label).__name__}; write true (desirable) or false "
            f"{UNQUOTED}"
        )
    prompt, (completion,) = read_answers(row, read_content(row, "prompt"), ["completion"])
    return [Judged(prompt, completion, label)]


FORMAT = Format(
    name="kto",
    wanted="judged",
    line="prompts and completions with a label, true if desirable",
    columns=("prompt", "completion", "label"),
    conversion=judged,
)
