"""Reads the JSON of a call strictly, and says in one sentence what is wrong with it and where."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ray_rl.environments.tools.words import quoted

MOST_LEVELS = 64
"""Lists and objects inside each other. What is deeper would overflow the stack of code that walks through it."""


class BadJson(ValueError):
    """A text that is not the JSON of a call; the message is for the policy."""


def read_value(text: str, start: int) -> tuple[Any, int]:
    """Returns the JSON value that starts at a position, after spaces, and the position behind it.

    Unlike Python's `json`, refuses NaN and infinity, numbers beyond a float, a key that occurs twice in an object, and
    values that are nested too deeply.

    Raises:
        BadJson: there is no such value; positions in the message count from 1 at `start`.
    """
    begin = after_space(text, start)
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        near = text[error.pos : error.pos + 20]
        place = f"at character {error.pos - begin + 1}" + (f", before {quoted(near)}" if near.strip() else ", its end")
        raise BadJson(f"{error.msg.removesuffix(' at')} {place}") from None
    except RecursionError:
        raise BadJson(_TOO_DEEP) from None
    except ValueError as error:  # ours, and Python's own for integers of thousands of digits
        is_ours = isinstance(error, BadJson)
        raise BadJson(str(error) if is_ours else "a number has too many digits") from None
    if _is_deep(value):
        raise BadJson(_TOO_DEEP)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadJson("a text has half of a surrogate pair, which is no character") from None
    return value, end


def after_space(text: str, start: int) -> int:
    """Returns the first position from `start` on that is no space, or the end."""
    space = _SPACE.match(text, start)
    return start if space is None else space.end()


_SPACE = re.compile(r"\s*")


_TOO_DEEP = f"nested more than {MOST_LEVELS} levels deep"


def _constant(name: str) -> Any:
    raise BadJson(f"{name} is not JSON; use a number or null")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadJson(f"the number {quoted(text)} is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    seen: set[str] = set()
    for name, _ in pairs if len(found) < len(pairs) else ():
        if name in seen:
            raise BadJson(f"the key {quoted(name)} occurs twice in an object")
        seen.add(name)
    return found


def _is_deep(value: Any) -> bool:
    """Returns whether a value has more than MOST_LEVELS levels, without recursion."""
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, object_pairs_hook=_object)
