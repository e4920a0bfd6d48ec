"""Numbers and samples as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_FIELDS = (
    ("reward", "reward/mean", "5.3f"),
    ("length", "rollout/length_mean", "5.1f"),
    ("cut off", "rollout/truncated_fraction", "4.0%"),
    ("stale", "rollout/staleness_max", ".0f"),
    ("kl", "policy/kl_reference", ".4f"),
    ("entropy", "policy/entropy", "5.3f"),
    ("gradient", "policy/grad_norm", "5.2f"),
)
"""Label, key and format of what a step's line shows, where the step has it."""
_SILENT_AT_ZERO = {"rollout/staleness_max", "rollout/truncated_fraction"}


def step_fields(values: Mapping[str, float], *, steps: int) -> list[tuple[str, str]]:
    """Label and value of each part of a step's line; the label is empty where the unit says enough.

    Args:
        values: as in `metrics.jsonl`.
        steps: that the run will have.
    """
    fields = [("step", f"{values['step']:{len(str(steps))}.0f}/{steps}")]
    for label, key, form in _FIELDS:
        if key in values and not (key in _SILENT_AT_ZERO and values[key] == 0):
            fields.append((label, format(values[key], form)))
    fields.append(("", f"{values['throughput/tokens_per_s']:,.0f} tokens/s"))
    phases = [
        f"{key.removeprefix('time/').removesuffix('_s')} {value:.1f}"
        for key, value in values.items()
        if key.startswith("time/") and key != "time/step_s"
    ]
    detail = f" ({', '.join(phases)})" if phases else ""
    fields.append(("", f"{values['time/step_s']:.1f} s{detail}"))
    return fields


def duration(seconds: float) -> str:
    """45 s, 9 min 12 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True, slots=True)
class Status:
    """What the run is doing now."""

    step: int | None
    """Number of the step that is being made, from 1; None before the first and after the last."""
    doing: str
    age_s: float
    detail: str = ""

    def __str__(self) -> str:
        """Like "step 3: waiting for rollouts (45 s; 12 of 64 completions)"."""
        prefix = "" if self.step is None else f"step {self.step}: "
        detail = f"; {self.detail}" if self.detail else ""
        return f"{prefix}{self.doing} ({duration(self.age_s)}{detail})"


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a table of samples."""

    prompt: str
    completion: str
    reward: float | None


def printable(text: str, *, encoding: str, limit: int) -> str:
    r"""A text that a model wrote, safe to print: control characters as escapes (\n), and the middle left out if long.

    A completion can hold terminal commands, or characters that the stream cannot encode.

    Args:
        text: anything.
        encoding: of the stream.
        limit: characters to keep; the end weighs as much as the start, for there the answer is.
    """
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} ... {text[-half:]}"
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return safe.encode(encoding, "backslashreplace").decode(encoding)
