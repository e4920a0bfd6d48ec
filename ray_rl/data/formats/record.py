"""Records that rows of any data set become: a demonstration, a comparison, a judged completion, or judged steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_rl.config.offline import Wanted
from ray_rl.types import Message

Content = str | tuple[Message, ...]
"""Plain text, or messages."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A completion to imitate."""

    prompt: Content
    """Context of the completion; nothing of it is trained on, unless all tokens are. Messages end before the first turn
    to imitate."""
    completion: Content
    """Answer to the prompt, of the same type. Messages begin and end with a turn of the assistant to imitate, and can
    have other turns between."""
    untrained: frozenset[int] = frozenset()
    """Indices of turns of the assistant in `completion` that the row excludes (`weight: 0` in data for OpenAI)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two completions of one prompt, one better than the other. All three have the same type."""

    prompt: Content
    chosen: Content
    rejected: Content
    margin: float | None = None
    """Difference of their scores, from a column `margin`; None without one."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A completion that is desirable or not. Prompt and completion have the same type."""

    prompt: Content
    completion: Content
    label: bool
    """Whether it is desirable."""


@dataclass(frozen=True, slots=True)
class Steps:
    """A solution in steps, each with the probability that it is right."""

    prompt: Content
    steps: tuple[str, ...]
    """The texts, with neither separators between them nor white space at their ends."""
    labels: tuple[float | None, ...]
    """Probabilities from 0 (wrong) to 1 (right), one per step; None for a step that is only context."""


Record = Demonstration | Comparison | Judged | Steps
RECORDS: Mapping[Wanted, type[Record]] = {
    "demonstration": Demonstration,
    "comparison": Comparison,
    "judged": Judged,
    "steps": Steps,
}
"""The records with which each kind of algorithm is trained."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that is left out although it can be read."""

    reason: str
    """The same text for all records that are dropped for the same reason, so that they can be counted."""


class Unusable(Exception):
    """A row that can be read gives no record. `Format.convert` returns a `Dropped` with the reason instead."""
