"""Prompt and completion: text or messages."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.formats.content import read_answers, read_content
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Demonstration


def demonstrations(rows: Sequence[Fields]) -> list[Demonstration]:
    """Returns the completion of a row as a demonstration; answers in its prompt are context."""
    (row,) = rows
    prompt, (completion,) = read_answers(row, read_content(row, "prompt"), ["completion"])
    return [Demonstration(prompt, completion)]


FORMAT = Format(
    name="prompt_completion",
    wanted="demonstration",
    line="prompts and completions, as text or messages",
    columns=("prompt", "completion"),
    conversion=demonstrations,
    without=("label", "chosen"),
)
