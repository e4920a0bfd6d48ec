"""OpenAI's form of preferences: the prompt in `input.messages`, the answers in two further columns."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.formats.content import read_answers, read_messages
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Comparison


def comparisons(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns the pair of a row."""
    (row,) = rows
    given = read_messages(row.inner("input"), "messages")
    prompt, (chosen, rejected) = read_answers(row, given, ["preferred_output", "non_preferred_output"])
    return [Comparison(prompt, chosen, rejected)]


FORMAT = Format(
    name="openai_preference",
    wanted="comparison",
    line="preferred and other outputs, in OpenAI's form",
    columns=("input", "preferred_output", "non_preferred_output"),
    conversion=comparisons,
)
