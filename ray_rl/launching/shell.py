"""Quotes text for bash scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping


def exports(environment: Mapping[str, str]) -> list[str]:
    """Returns one bash line per variable, in their order, which exports exactly its value."""
    return [f"export {name}={_quoted(value)}" for name, value in environment.items()]


def _quoted(text: str) -> str:
    """Returns a bash word on one line: sbatch refuses scripts with a carriage return."""
    if not any(ord(character) < 32 or ord(character) == 127 for character in text):
        return shlex.quote(text)
    escaped = "".join(
        f"\\{ord(character):03o}" if ord(character) < 32 or character in "\\'\x7f" else character for character in text
    )
    return f"$'{escaped}'"
