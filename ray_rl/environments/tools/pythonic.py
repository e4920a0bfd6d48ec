"""Reads a list of Python calls with constant arguments. Nothing of it is executed."""

from __future__ import annotations

import ast
import json
import math
import warnings
from typing import Any

from ray_rl.environments.tools.strict_json import MOST_LEVELS

MOST_CHARACTERS = 100_000
"""Longest list that is read: Python's parser takes much memory for a character."""


class BadList(ValueError):
    """A text that is not a list of calls; the message is for the policy."""


def read_list(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns name and arguments of each call in `[add(a=1, b=2), math.sqrt(x=2)]`.

    Raises:
        BadList: the text is not such a list.
    """
    if len(text) > MOST_CHARACTERS:
        raise BadList(f"it has {len(text)} characters, more than {MOST_CHARACTERS}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in strings
            tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        place = f" at character {error.offset}" if error.offset else ""
        raise BadList(f"{error.msg}{place}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # NUL characters; parentheses in thousands
        raise BadList("nested too deeply" if not isinstance(error, ValueError) else str(error)) from None
    if not isinstance(tree, ast.List) or not tree.elts:
        raise BadList("a list of calls is expected, like [name(key=value)]")
    return [_call(each) for each in tree.elts]


def _call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    name = _dotted(node.func) if isinstance(node, ast.Call) else None
    if not isinstance(node, ast.Call) or name is None:
        raise BadList("every entry must be a call, like name(key=value)")
    if node.args:
        raise BadList(f"{name}: arguments need their names, like name(key=value)")
    found: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in found:
            raise BadList(f"{name}: {'** is not possible' if keyword.arg is None else f'{keyword.arg!r} occurs twice'}")
        found[keyword.arg] = _constant(keyword.value, f"{name}: {keyword.arg}", MOST_LEVELS)
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadList(f"{name}: a text has half of a surrogate pair, which is no character") from None
    return name, found


def _dotted(node: ast.expr) -> str | None:
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else None


_NAMED = {"true": True, "false": False, "null": None}
"""JSON's names, which models write in Python's place."""


def _constant(node: ast.expr, where: str, levels: int) -> Any:
    """Returns the value of an expression as JSON has it: tuples become lists."""
    if levels == 0:
        raise BadList(f"{where} is nested more than {MOST_LEVELS} levels deep")
    match node:
        case ast.Constant(value=str() | bool() | int() | None as value):
            return value
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if math.isfinite(value):
            return -value
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_constant(each, where, levels - 1) for each in elements]
        case ast.Dict(keys=keys, values=values):
            names = [key.value if isinstance(key, ast.Constant) else None for key in keys]
            if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise BadList(f"{where}: the keys of a dictionary must be different strings")
            return {name: _constant(value, where, levels - 1) for name, value in zip(names, values, strict=True)}
        case ast.Name(id=name) if name in _NAMED:
            return _NAMED[name]
        case _:
            raise BadList(f"{where} must be a constant: a number, a string, True, False, None, a list or a dictionary")
