"""Writes words of a command so that they can be pasted into a shell."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 99
"""The most columns of a line."""


def pasted(words: Sequence[str], indent: str = "  ") -> list[str]:
    """Returns the words of a command in indented lines that a shell reads as one line."""
    width = WIDTH - len(indent) - len(" \\")
    lines = textwrap.wrap(
        " ".join(words), width, break_on_hyphens=False, break_long_words=False, subsequent_indent="  "
    )
    return [f"{indent}{line}" + (" \\" if line is not lines[-1] else "") for line in lines]
