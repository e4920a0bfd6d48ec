"""How long a run took to recover, by what its `logs/driver.log` says and when."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Said:
    """A line of the log."""

    text: str
    after_s: float
    """From the fault."""


def now() -> datetime:
    """On the clock of the log."""
    return datetime.now(UTC)


def said(log: Path, text: str, *, since: datetime, fault: str) -> Said:
    """The first line since a fault that has a text; its seconds are printed, for the table of docs/recovery.md.

    Raises:
        AssertionError: there is no such line.
    """
    for line in log.read_text(encoding="utf-8").splitlines():
        stamp, _, words = line.partition(" ")
        after_s = (datetime.fromisoformat(stamp) - since).total_seconds()
        if text in words and after_s > -0.001:  # the log has milliseconds
            print(f"recovery: {fault}: {after_s:.1f} s until {text!r}")
            return Said(words, after_s)
    raise AssertionError(f"{log}: nobody said {text!r} after {since}")
