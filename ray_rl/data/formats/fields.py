"""Reads the columns of a row by name, with errors that name the row, the column and the value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_rl.data.columns import check_text, column_names, shorten
from ray_rl.errors import DataError

UNQUOTED = "without quotes (CSV files have only text: use .jsonl or parquet)"
"""The remedy for a number or a boolean that is text."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns of a row, or the keys of an object in one of them."""

    where: str
    """The place of the row, for errors."""
    values: Mapping[str, Any]
    path: str = ""
    """The keys that lead to these values, for errors."""

    def place(self, name: str) -> str:
        """Returns the place of a value for errors: "train.jsonl:3: completions[0].response"."""
        return f"{self.where}: {self.path}{name}"

    def value(self, name: str) -> Any:
        """Returns a value.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.values:
            names = ", ".join(column_names(self.values) if not self.path else sorted(map(str, self.values)))
            raise DataError(f"{self.where}: no {self.path}{name}; there are {names or 'no columns'}; correct the row")
        return self.values[name]

    def text(self, name: str) -> str:
        """Returns a text, which may be empty.

        Raises:
            DataError: the value is not text, or has half of a surrogate pair.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise DataError(f"{self.place(name)} is {shorten(value)}; write text")
        check_text(value, where=self.place(name))
        return value

    def optional_text(self, name: str) -> str:
        """Returns a text; an empty one if there is no such column or it is null."""
        return "" if self.values.get(name) is None else self.text(name)

    def number(self, name: str) -> float:
        """Returns a finite number.

        Raises:
            DataError: the value is not one; text with a number is not one either.
        """
        value = self.value(name)
        if not is_number(value):
            inside = f" {UNQUOTED}" if isinstance(value, str) else ""
            raise DataError(f"{self.place(name)} is {shorten(value)}; write a number{inside}")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """Returns a finite number; None if there is no such column, or it is null or nan, as tables mark no value."""
        value = self.values.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        return self.number(name)

    def inner(self, name: str) -> Fields:
        """Returns the values of an object.

        Raises:
            DataError: the value is not an object.
        """
        return self._object(self.value(name), name)

    def each(self, name: str) -> list[Fields]:
        """Returns the objects of a list.

        Raises:
            DataError: the value is not a list of objects.
        """
        value = self.value(name)
        if not isinstance(value, list | tuple):
            raise DataError(f"{self.place(name)} is {shorten(value)}; write a list of objects")
        return [self._object(item, f"{name}[{index}]") for index, item in enumerate(value)]

    def _object(self, value: object, name: str) -> Fields:
        if not isinstance(value, Mapping):
            raise DataError(f"{self.place(name)} is {shorten(value)}; write an object")
        return Fields(self.where, value, f"{self.path}{name}.")


def is_number(value: object) -> bool:
    """Returns whether a value is a finite number, and not a boolean or an integer too large for a float."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= 1023
    return isinstance(value, float) and math.isfinite(value)
