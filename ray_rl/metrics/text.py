"""Formats numbers and samples for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NOTHING = "-"
"""Shown for a value that a step does not have."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the line that each step prints, in order: all lines of a run have the same columns."""

    fields: Mapping[str, tuple[str, int, str]]
    """Key in `metrics.jsonl`, width and format of each value, by label."""
    phases: tuple[str, ...]
    """Phases of a step whose seconds are shown."""
    compared: tuple[str, ...]
    """Labels of the values whose first and last ones the summary of the run compares."""

    @property
    def compared_keys(self) -> dict[str, str]:
        """The keys of these values, by label."""
        return {label: self.fields[label][0] for label in self.compared}


def step_fields(values: Mapping[str, float], columns: Columns, *, steps: int) -> list[tuple[str, str]]:
    """Returns label and value of each column of a step's line, with constant width for values of usual size.

    Args:
        values: the values of `metrics.jsonl`.
        columns: the columns of the run.
        steps: number of steps of the run.
    """
    fields = [("step", f"{values['step']:{len(str(steps))}.0f}/{steps}")]
    for label, (key, width, form) in columns.fields.items():
        fields.append((label, (format(values[key], form) if key in values else NOTHING).rjust(width)))
    fields.append(("tokens/s", f"{values['throughput/tokens_per_s']:,.0f}".rjust(6)))
    fields.append(("seconds", f"{values['time/step_s']:.1f}".rjust(5)))
    for phase in columns.phases:
        key = f"time/{phase}_s"
        fields.append((phase, (f"{values[key]:.1f}" if key in values else NOTHING).rjust(5)))
    return fields


def duration(seconds: float) -> str:
    """Formats a duration as 45 s, 9 min 12 s or 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True, slots=True)
class Status:
    """The current activity of the run."""

    step: int | None
    """Number of the current step, from 1; None before the first and after the last step."""
    doing: str
    age_s: float
    detail: str = ""

    def __str__(self) -> str:
        """Returns text like "step 3: waiting for rollouts (45 s; 12 of 64 completions)"."""
        prefix = "" if self.step is None else f"step {self.step}: "
        detail = f"; {self.detail}" if self.detail else ""
        return f"{prefix}{self.doing} ({duration(self.age_s)}{detail})"


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a table of samples."""

    prompt: str
    completion: str
    answer: str | None
    """The reference answer; None if the row has none."""
    reward: float | None
    parts: Mapping[str, float | None]
    """The score of each reward function, by name."""


def printable(text: str, *, encoding: str, limit: int) -> str:
    r"""Makes a text of a model safe to print: control characters become escapes (\n), a long middle is left out.

    A completion can hold terminal commands, or characters that the stream cannot encode.

    Args:
        text: any text.
        encoding: the encoding of the stream.
        limit: number of characters to keep, half from the start and half from the end, where the answer is.
    """
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} ... {text[-half:]}"
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return safe.encode(encoding, "backslashreplace").decode(encoding)
