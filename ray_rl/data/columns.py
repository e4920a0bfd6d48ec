"""Finds the columns of a row, converts their values to plain types, and shows them in errors."""

from __future__ import annotations

import datetime
import math
import reprlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ray_rl.errors import DataError
from ray_rl.types import column_value

RESERVED_COLUMNS = frozenset({"completions", "prompts", "finish_reasons", "lengths"})
"""Arguments that reward functions get in addition to the columns of the row."""

NAMING = "data.columns renames columns of files and of the hub; data.function names its own"
"""Advice on giving a column the name that a reward function expects."""
DEEPEST = 200
"""The deepest nesting of objects and lists. Python's own limit depends on the depth of the caller."""
MOST_BITS = 14_000
"""The most bits of an integer: Python cannot write integers of more than 4,300 digits."""

_SHOWN_CHARACTERS = 80
_REASON_CHARACTERS = 600


def has_column(columns: Mapping[str, Any], path: str) -> bool:
    """Returns whether there is a value with that name; the value may be None."""
    try:
        column_value(columns, path)
    except KeyError:
        return False
    return True


def column_names(columns: Mapping[str, Any]) -> list[str]:
    """Returns the names of all columns and nested columns, as a configuration can name them."""
    inner = [f"{name}.{key}" for name, value in columns.items() if isinstance(value, Mapping) for key in value]
    return sorted([*columns, *inner])


def plain(value: Any, *, where: str, depth: int = 0) -> Any:
    """Returns the value in types that a checkpoint can hold: text, numbers, booleans, None, lists and dictionaries.

    Times become ISO text, decimal numbers become text, numpy values become Python values, tuples become lists, and nan,
    with which tables mark missing values, becomes None.

    Args:
        value: the value of a column.
        where: named in errors: the row and the column.
        depth: the depth of the value in its column.

    Raises:
        DataError: the value has another type, infinity, a key that is not text, half of a surrogate pair, or is nested
            too deep.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        check_text(value, where=where)
        return value
    if isinstance(value, int) and value.bit_length() <= MOST_BITS:
        return value
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping | list | tuple):
        if depth >= DEEPEST:
            raise DataError(f"{where}: nested deeper than {DEEPEST} levels; write it flatter, or as text")
        if not isinstance(value, Mapping):
            return [plain(each, where=where, depth=depth + 1) for each in value]
        if all(isinstance(key, str) for key in value):
            return {key: plain(value[key], where=f"{where}.{key}", depth=depth + 1) for key in value}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if type(value).__module__ == "numpy":
        return plain(value.tolist(), where=where, depth=depth + 1)
    raise DataError(
        f"{where} is {shorten(value)}, a {type(value).__name__}, which neither records nor checkpoints can hold; give "
        "text, finite numbers, booleans, lists, or dictionaries with text for keys"
    )


def check_text(text: str, *, where: str) -> None:
    """Refuses text with half of a surrogate pair.

    Raises:
        DataError: the text has one; the message has the character and its position.
    """
    if text.isascii():  # takes constant time
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start + 1} is {text[error.start]!a}, half of a surrogate pair, which no "
            f"tokenizer accepts; the text was probably cut inside an emoji: remove it, or write U+FFFD (\\ufffd)"
        ) from error


def shorten(value: object) -> str:
    """Returns the repr of a value, shortened to one line, for values of any size and depth."""
    text = repr(value[: _SHOWN_CHARACTERS + 1]) if isinstance(value, str) else _SHORT.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def reason(error: BaseException) -> str:
    """Returns the message of a library's error on one line of limited length."""
    return " ".join(str(error)[:_REASON_CHARACTERS].split())


class _Short(reprlib.Repr):
    """A repr with limited time and length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = _SHOWN_CHARACTERS
        self.maxdict = self.maxlist = self.maxtuple = 8

    def repr_int(self, x: int, level: int) -> str:
        """Describes integers of more than 4,300 digits, which Python refuses to write."""
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > MOST_BITS else super().repr_int(x, level)


_SHORT = _Short()
