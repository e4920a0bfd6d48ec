"""TRL's form of judged steps: a prompt, a list of steps, and a list of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_rl.data.columns import check_text, shorten
from ray_rl.data.formats.content import read_content
from ray_rl.data.formats.fields import Fields, is_number
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Steps
from ray_rl.errors import DataError


def steps(rows: Sequence[Fields]) -> list[Steps]:
    """Returns the steps of a row; a label is a boolean, or a probability from 0 to 1 that the step is right."""
    (row,) = rows
    prompt, texts, labels = read_content(row, "prompt"), _list(row, "completions"), _list(row, "labels")
    if len(texts) != len(labels):
        raise DataError(f"{row.where}: {len(texts)} completions and {len(labels)} labels; write one label per step")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{row.place('completions')}[{index}] is {shorten(text)}; write text")
        check_text(text, where=f"{row.place('completions')}[{index}]")
    for index, label in enumerate(labels):
        if not isinstance(label, bool) and not (is_number(label) and 0 <= label <= 1):
            raise DataError(
                f"{row.place('labels')}[{index}] is {shorten(label)}; write true, false, or a number from 0 to 1"
            )
    return [Steps(prompt, tuple(text.strip() for text in texts), tuple(map(float, labels)))]


def _list(row: Fields, name: str) -> list[Any]:
    value = row.value(name)
    if not isinstance(value, list | tuple):
        raise DataError(f"{row.place(name)} is {shorten(value)}; write a list")
    return list(value)


FORMAT = Format(
    name="stepwise",
    wanted="steps",
    line="prompts with lists of steps and labels, in TRL's form",
    columns=("prompt", "completions", "labels"),
    conversion=steps,
)
