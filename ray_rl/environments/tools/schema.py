"""Schemas of tools in OpenAI's form, and the check of a call's arguments against them."""

from __future__ import annotations

import inspect
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import typing_extensions

from ray_rl.environments.tools.words import SHOWN_CHARACTERS
from ray_rl.errors import ConfigError

MOST_ERRORS = 3
ERROR_CHARACTERS = 200
"""How many errors of the arguments the policy reads, and the most characters of each: errors quote values."""

Schema = dict[str, Any]

_PLAIN = (int, float, str, bool, list, dict, tuple, type(None))
_CONTAINERS = (list, tuple, dict, Sequence, Mapping, typing.Union, types.UnionType)
_WRAPPERS = (typing.Annotated, typing.Required, typing.NotRequired)


def function_schema(function: Callable[..., Any], *, name: str | None = None) -> Schema:
    """Returns the schema of a function from its type hints and its docstring (Google's style).

    The description is the docstring up to "Args:"; the parameters have those of "Args:". `self` of a method is left
    out. Types are those that JSON has: int, float, str, bool, None, list, dict, tuple (which gets a list), Literal,
    unions, Annotated and TypedDict of these.

    Args:
        function: a function or a bound method.
        name: the name of the tool; None for that of the function.

    Raises:
        ConfigError: it is no function of Python, or a parameter has no type hint, one that JSON cannot express, or no
            name.
    """
    if not isinstance(function, types.FunctionType | types.MethodType):
        raise ConfigError(f"{function!r} is no function of Python with type hints; wrap it in one")
    own = name or function.__name__
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"tool {own!r}: {parameter}: calls have only named arguments; make it a named parameter")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"tool {own!r}: its type hints cannot be read: {error}; correct them") from error
    for key in inspect.signature(function).parameters:
        if key not in hints:
            raise ConfigError(f"tool {own!r}: the parameter {key!r} has no type hint; add one")
        _check_hint(hints[key], f"tool {own!r}: the parameter {key!r}")
    parameters = _parameters(function, own)
    text, described = docstring_parts(inspect.getdoc(function) or "")
    properties = parameters.setdefault("properties", {})
    for key, description in described.items():
        if key in properties:
            properties[key] = {"description": description} | properties[key]
    return {"type": "function", "function": {"name": own, "description": text, "parameters": parameters}}


def _parameters(function: Callable[..., Any], name: str) -> Schema:
    """Returns the JSON schema of a function's parameters.

    Raises:
        ConfigError: pydantic cannot make one.
    """
    import pydantic
    from pydantic.json_schema import PydanticJsonSchemaWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # a default that JSON does not have is left out
        try:
            typed: Any = function
            adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(typed)
            return dict(_without_titles(adapter.json_schema()))
        except pydantic.errors.PydanticUserError as error:
            why = str(error).splitlines()[0]
            raise ConfigError(f"tool {name!r}: no schema can be made of its type hints: {why}") from error


def _without_titles(schema: Any) -> Any:
    """Returns a schema without the titles that pydantic makes of names. Properties may have the name `title`."""
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_titles(inner) for name, inner in value.items()}
        if key in ("properties", "$defs")
        else value
        if key in ("default", "enum", "const")
        else _without_titles(value)
        for key, value in schema.items()
        if key != "title"
    }


def _check_hint(hint: Any, where: str) -> None:
    """Checks that JSON can express what a type hint says.

    Raises:
        ConfigError: it cannot.
    """
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or any(hint is plain for plain in _PLAIN) or origin is typing.Literal:
        return
    if typing_extensions.is_typeddict(hint):
        inside = tuple(typing.get_type_hints(hint, include_extras=True).values())
    elif origin in _WRAPPERS:
        inside = inside[:1]
    elif origin not in _CONTAINERS:
        name = hint.__name__ if isinstance(hint, type) else str(hint)
        raise ConfigError(
            f"{where} has the type {name}, which JSON does not have; use int, float, str, bool, list, dict, Literal or "
            "a TypedDict, and convert the value in the function"
        )
    for each in inside:
        if each is not Ellipsis:
            _check_hint(each, where)


def given_schema(schema: Mapping[str, Any]) -> Schema:
    """Returns a schema that a user wrote, in OpenAI's form.

    Accepts the form {"type": "function", "function": {...}}, the function alone, and MCP's `inputSchema`. The types of
    the Berkeley Function-Calling Leaderboard, "dict", "float", "tuple" and "any", become those of JSON schema.

    Raises:
        ConfigError: it has no name, or its parameters are not a JSON schema of an object.
    """
    inner = schema.get("function", schema)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise ConfigError(f"the schema of a tool has no name: {str(schema)[:SHOWN_CHARACTERS]}; add one")
    given = inner.get("parameters", inner.get("inputSchema")) or {}
    parameters = converted(given)
    if not isinstance(parameters, dict) or parameters.setdefault("type", "object") != "object":
        raise ConfigError(f"tool {inner['name']!r}: its parameters must be a JSON schema with type object")
    parameters.setdefault("properties", {})
    description = str(inner.get("description") or "")
    found = {"name": inner["name"], "description": description, "parameters": parameters}
    check_schema(found["name"], parameters)
    return {"type": "function", "function": found}


def check_schema(name: str, parameters: Mapping[str, Any]) -> None:
    """Checks that the parameters of a tool are a JSON schema that needs no other document.

    Raises:
        ConfigError: they are not; the message says where.
    """
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    kind = jsonschema.Draft202012Validator
    try:
        kind.check_schema(parameters)
        resolver = Registry().with_resource("", DRAFT202012.create_resource(parameters)).resolver()
        for reference in _references(parameters):
            resolver.lookup(reference)
        kind(parameters).is_valid({})
    except jsonschema.SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise ConfigError(
            f"tool {name!r}: its parameters are not a JSON schema: {place or 'they'}: "
            f"{error.message[:ERROR_CHARACTERS]}; correct the schema"
        ) from error
    except Unresolvable as error:
        raise ConfigError(
            f"tool {name!r}: its parameters refer to {error.ref!r}, which they do not contain; put it into $defs"
        ) from error
    except RecursionError as error:
        raise ConfigError(
            f"tool {name!r}: its parameters refer to themselves without end; correct the schema"
        ) from error


def _references(schema: Any) -> Iterator[str]:
    """Yields what a schema refers to."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)


class Validator:
    """Checks arguments against the parameters of one tool."""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Compiles a schema, which `check_schema` has found right: that check takes ten times as long."""
        import jsonschema

        self._name = name
        self._parameters = parameters
        self._validator = jsonschema.Draft202012Validator(parameters)

    def error(self, arguments: Mapping[str, Any]) -> str | None:
        """Returns what is wrong with the arguments, for the policy: at most MOST_ERRORS errors; None if they fit."""
        found = sorted(self._validator.iter_errors(arguments), key=lambda error: [str(part) for part in error.path])
        if not found:
            return None
        told = [_told(error.message, error.absolute_path) for error in found[:MOST_ERRORS]]
        more = f"; and {len(found) - MOST_ERRORS} more" if len(found) > MOST_ERRORS else ""
        return f"{self._name}: {'; '.join(told)}{more}"

    def fitted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments that fit, with an int where the schema wants an integer and JSON had 2.0."""
        kinds = self._parameters.get("properties", {})
        return {
            name: int(value)
            if isinstance(value, float) and isinstance(kinds.get(name), dict) and kinds[name].get("type") == "integer"
            else value
            for name, value in arguments.items()
        }


def _told(message: str, path: Sequence[Any]) -> str:
    shown = message if len(message) <= ERROR_CHARACTERS else f"{message[:ERROR_CHARACTERS]}..."
    place = "".join(f"[{str(part)[:SHOWN_CHARACTERS]!r}]" if isinstance(part, str) else f"[{part}]" for part in path)
    return f"arguments{place}: {shown}"


_CONVERTED = {"dict": "object", "float": "number", "tuple": "array", "double": "number", "long": "integer"}


def converted(schema: Any) -> Any:
    """Returns a schema with the types of JSON schema in place of Python's; `any` is no restriction.

    Only values of the key `type` where a schema may be are changed, and never the names of properties.
    """
    if isinstance(schema, list):
        return [converted(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: Schema = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "patternProperties") and isinstance(value, Mapping):
            found[key] = {name: converted(inner) for name, inner in value.items()}
        elif key == "type" and isinstance(value, str):
            if value.lower() != "any":
                found[key] = _CONVERTED.get(value, value)
        elif key in ("enum", "const", "default", "examples", "required"):
            found[key] = value
        else:
            found[key] = converted(value)
    return found


def docstring_parts(text: str) -> tuple[str, dict[str, str]]:
    """Returns what a docstring in Google's style says of the function, and of each argument."""
    head, *rest = re.split(r"^(?:Args|Arguments):[ \t]*$", text, maxsplit=1, flags=re.MULTILINE)
    section = r"^(?:Returns|Return|Yields|Raises|Examples?|Notes?):.*\Z"
    described = re.sub(section, "", head, flags=re.MULTILINE | re.DOTALL).strip()
    found: dict[str, list[str]] = {}
    body = [line for line in (rest[0].splitlines() if rest else []) if line.strip()]
    indent = len(body[0]) - len(body[0].lstrip()) if body else 0
    name = None
    for line in body:
        if indent and not line.startswith(" "):
            break
        entry = re.match(r"(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)", line[indent:])
        if entry is not None:
            name = entry[1].lstrip("*")
            found[name] = [entry[2]]
        elif name is not None:
            found[name].append(line.strip())
    return described, {name: " ".join(parts).strip() for name, parts in found.items()}
