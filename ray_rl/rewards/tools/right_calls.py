"""Compares calls of tools with the expected ones, as the Berkeley Function-Calling Leaderboard does by their values.

Rules of its `ast_checker.py` (v4, Python): the name is equal; every argument has one of its possible values, and no
other arguments are there; "" among the values makes an argument optional; text is compared without " ,./-_*^", in
lower case and with one kind of quotes; an int is right where a float is expected; parallel calls may have any order.
It also compares types with the schema; here the expected value says the type, so that 5.0 is right where 5 is expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_rl.data.columns import shorten
from ray_rl.errors import DataError
from ray_rl.types import ToolCall

_FORMS = (
    'expected calls are a list of {"name": ..., "arguments": {...}}, or of {name: {argument: [possible values]}} as in '
    "the Berkeley Function-Calling Leaderboard, or JSON text of one"
)


@dataclass(frozen=True, slots=True)
class ExpectedCall:
    """A call that is right."""

    name: str
    possible: Mapping[str, Sequence[Any]]
    """The values of each argument that are right."""
    optional: frozenset[str] = frozenset()
    """Arguments that may be missing."""
    nested: bool = False
    """Whether the values in a dictionary are lists of possible values, too."""


def expected_calls(value: Any) -> list[ExpectedCall] | None:
    """Returns the expected calls of a column; [] if no call is right, None for null.

    Keys whose value is null are optional with the value null, or are no calls: tables give all rows the same keys.

    Raises:
        DataError: the value has none of the forms.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{shorten(value)} is not JSON: {error}; {_FORMS}") from error
    if value is None:
        return None
    given = [value] if isinstance(value, Mapping) else value
    if not isinstance(given, list | tuple):
        raise DataError(f"{shorten(value)}: {_FORMS}")
    return [call for each in given for call in _expected(each)]


def _expected(value: Any) -> list[ExpectedCall]:
    """Returns the calls of an entry: one, or those of a mapping of names.

    Raises:
        DataError: it has none of the forms.
    """
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return [_exact(value)]
    calls = []
    for name, possible in value.items() if isinstance(value, Mapping) else ():
        if possible is None:
            continue
        if not isinstance(possible, Mapping):
            raise DataError(f"{shorten(value)}: {_FORMS}")
        named = {key: values for key, values in possible.items() if values is not None}
        if not all(isinstance(values, list | tuple) for values in named.values()):
            raise DataError(f"{shorten(value)}: the values of {name} are no lists; {_FORMS}")
        optional = frozenset(key for key, values in named.items() if "" in values)
        calls.append(ExpectedCall(name, named, optional, nested=True))
    if not calls:
        raise DataError(f"{shorten(value)}: {_FORMS}")
    return calls


def _exact(value: Mapping[str, Any]) -> ExpectedCall:
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{shorten(arguments)} is not JSON: {error}; {_FORMS}") from error
    if arguments is not None and not isinstance(arguments, Mapping):
        raise DataError(f"{shorten(value)}: the arguments are no object; {_FORMS}")
    found = dict(arguments or {})
    optional = frozenset(key for key, each in found.items() if each is None)
    return ExpectedCall(value["name"], {key: [each] for key, each in found.items()}, optional)


def is_right(call: ToolCall, expected: ExpectedCall) -> bool:
    """Returns whether a call is the expected one."""
    if call.error is not None or call.arguments is None or call.name != expected.name:
        return False
    given = call.arguments
    if any(name not in given and name not in expected.optional for name in expected.possible):
        return False
    return all(
        name in expected.possible
        and any(_is_equal(value, each, nested=expected.nested) for each in expected.possible[name])
        for name, value in given.items()
    )


def are_right(calls: Sequence[ToolCall], expected: Sequence[ExpectedCall]) -> bool:
    """Returns whether there is one right call for each expected one, in any order, and no other call.

    The leaderboard takes the first call that fits an expected one, and may so miss a way to fit all; this does not.
    """
    if len(calls) != len(expected):
        return False
    owner: dict[int, int] = {}

    def fits(number: int, tried: set[int]) -> bool:
        for place, call in enumerate(calls):
            if place not in tried and is_right(call, expected[number]):
                tried.add(place)
                if place not in owner or fits(owner[place], tried):
                    owner[place] = number
                    return True
        return False

    return all(fits(number, set()) for number in range(len(expected)))


def _is_equal(value: Any, wanted: Any, *, nested: bool) -> bool:
    match wanted:
        case bool() | None:
            return value is wanted
        case int() | float():
            return isinstance(value, int | float) and not isinstance(value, bool) and value == wanted
        case str():
            return isinstance(value, str) and _standard(value) == _standard(wanted)
        case list() | tuple():
            return (
                isinstance(value, list | tuple)
                and len(value) == len(wanted)
                and all(_is_equal(each, other, nested=nested) for each, other in zip(value, wanted, strict=True))
            )
        case Mapping():
            return isinstance(value, Mapping) and _are_equal(value, wanted, nested=nested)
        case _:
            return False


def _are_equal(value: Mapping[str, Any], wanted: Mapping[str, Any], *, nested: bool) -> bool:
    if not nested:
        is_same = value.keys() == wanted.keys()
        return is_same and all(_is_equal(value[key], wanted[key], nested=False) for key in wanted)
    for key, each in wanted.items():
        possible = each if isinstance(each, list | tuple) else [each]
        if key not in value:
            if "" not in possible:
                return False
        elif not _is_equal(value[key], each, nested=True) and not any(
            _is_equal(value[key], other, nested=True) for other in possible
        ):
            return False
    return value.keys() <= wanted.keys()


def _standard(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')


_IGNORED = re.compile(r"[ ,./\-_*^]")
