"""Short texts for the policy: what is quoted to it, and what is cut off."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

SHOWN_CHARACTERS = 64
"""The most that an error quotes of a name or of a wrong text."""


def quoted(text: str) -> str:
    """Returns a short text in quotes, with its odd characters escaped."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")


def cut(text: str, most: int) -> str:
    """Returns a text with at most so many characters, and the note that says what was cut off."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[cut off after {most} of {len(text)} characters]"


def printable(text: str) -> str:
    """Returns a text that UTF-8 can express: lone surrogates, which no tokenizer takes, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def error_text(error: str) -> str:
    """Returns the answer of a call that failed: `{"error": ...}`."""
    return json.dumps({"error": printable(error)}, ensure_ascii=False)


def result_text(result: Any) -> str:
    """Returns what a tool returned as text: text as it is, and anything else as JSON.

    What JSON does not have is written as `str` does. Raises whatever such a value raises.
    """
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def listed(names: Iterable[str], most: int = 30) -> str:
    """Returns names with commas; of very many, the first ones and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(every[:most]) or "none") + more
