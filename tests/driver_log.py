"""How long a run took to recover, by what its `logs/driver.log` says and when."""

from datetime import UTC, datetime
from pathlib import Path


def now() -> datetime:
    """On the clock of the log."""
    return datetime.now(UTC)


def seconds_until(log: Path, text: str, *, since: datetime, fault: str) -> float:
    """From a moment to the first line after it that has a text; printed, for the table of docs/recovery.md.

    Raises:
        AssertionError: there is no such line.
    """
    for line in log.read_text(encoding="utf-8").splitlines():
        stamp, _, said = line.partition(" ")
        seconds = (datetime.fromisoformat(stamp) - since).total_seconds()
        if text in said and seconds > -0.001:
            print(f"recovery: {fault}: {seconds:.1f} s until {text!r}")
            return seconds
    raise AssertionError(f"{log}: nobody said {text!r} after {since}")
