import datetime
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from ray_rl.environments.tools.schema import Validator, converted, docstring_parts, function_schema, given_schema
from ray_rl.errors import ConfigError


class Place(TypedDict):
    city: str
    title: str


def forecast(
    place: Place, days: int = 3, *, unit: Literal["C", "F"] = "C", tags: list[str] | None = None, json: str = ""
) -> str:
    """Tells the weather.

    It is often wrong.

    Args:
        place: where,
            with its title.
        days (int): how many: at most ten.
        nothing: not a parameter.

    Returns:
        unit: the weather.
    """
    return ""


def test_a_function_becomes_a_schema_of_openai():
    assert function_schema(forecast) == {
        "type": "function",
        "function": {
            "name": "forecast",
            "description": "Tells the weather.\n\nIt is often wrong.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "required": ["place"],
                "$defs": {
                    "Place": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "title": {"type": "string"}},
                        "required": ["city", "title"],
                    }
                },
                "properties": {
                    "place": {"$ref": "#/$defs/Place", "description": "where, with its title."},
                    "days": {"type": "integer", "default": 3, "description": "how many: at most ten."},
                    "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                    "tags": {
                        "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                        "default": None,
                    },
                    "json": {"type": "string", "default": ""},
                },
            },
        },
    }


def test_self_is_no_parameter():
    class Counter:
        def add(self, by: "int") -> int:
            """Adds."""
            return by

    assert list(function_schema(Counter().add)["function"]["parameters"]["properties"]) == ["by"]


def without_hint(a) -> None: ...
def a_date(when: datetime.date) -> None: ...
def a_function(then: list[Callable[[], int]]) -> None: ...
def many(*numbers: int) -> None: ...
def positional(a: int, /) -> None: ...
def unknown_name(a: "Nowhere") -> None: ...  # noqa: F821


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (without_hint, "the parameter 'a' has no type hint"),
        (a_date, "the parameter 'when' has the type date, which JSON does not have"),
        (a_function, "the parameter 'then' has the type .*Callable"),
        (many, "calls have only named arguments"),
        (positional, "calls have only named arguments"),
        (unknown_name, "its type hints cannot be read"),
        (len, "no function of Python"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused(function: Callable[..., Any], why: str):
    with pytest.raises(ConfigError, match=why):
        function_schema(function)


def test_annotations_bound_values():
    def roll(dice: Annotated[int, Field(ge=1, le=9, description="How many.")]) -> int:
        """Rolls."""
        return dice

    (dice,) = function_schema(roll)["function"]["parameters"]["properties"].values()
    assert dice == {"type": "integer", "minimum": 1, "maximum": 9, "description": "How many."}


def test_a_docstring_without_arguments_is_the_description():
    assert docstring_parts("Adds.\n\nReturns:\n    The sum.") == ("Adds.", {})
    assert docstring_parts("") == ("", {})
    assert docstring_parts("Args:\n") == ("", {})


LEADERBOARD = {
    "name": "math.mean",
    "description": "Means.",
    "parameters": {
        "type": "dict",
        "properties": {
            "numbers": {"type": "array", "items": {"type": "float"}},
            "type": {"type": "string", "enum": ["dict", "float"], "default": "float"},
            "pair": {"type": "tuple", "items": {"type": "any"}},
            "deep": {"type": "dict", "properties": {"dict": {"type": "dict"}}},
        },
        "required": ["numbers"],
    },
}


def test_the_types_of_the_leaderboard_become_those_of_json_schema():
    assert given_schema(LEADERBOARD)["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "numbers": {"type": "array", "items": {"type": "number"}},
            "type": {"type": "string", "enum": ["dict", "float"], "default": "float"},
            "pair": {"type": "array", "items": {}},
            "deep": {"type": "object", "properties": {"dict": {"type": "object"}}},
        },
        "required": ["numbers"],
    }


def test_all_forms_of_a_schema_are_accepted():
    mcp = {"name": "f", "inputSchema": {"properties": {}}}
    expected = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    for given in ({"name": "f"}, {"type": "function", "function": {"name": "f", "parameters": None}}, mcp):
        assert given_schema(given) == {"type": "function", "function": expected}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"description": "x"}, "has no name"),
        ({"name": ""}, "has no name"),
        ({"name": "f", "parameters": {"type": "array"}}, "must be a JSON schema with type object"),
        ({"name": "f", "parameters": [1]}, "must be a JSON schema with type object"),
        (
            {"name": "f", "parameters": {"properties": {"a": {"type": "number or so"}}}},
            r"\['properties'\]\['a'\].*number or so.*correct the schema",
        ),
    ],
)
def test_a_wrong_schema_is_refused(schema: dict[str, Any], why: str):
    with pytest.raises(ConfigError, match=why):
        given_schema(schema)


REFERENCES = {
    "http://example.com/schema": "refer to 'http://example.com/schema', which they do not contain",
    "#/$defs/Nothing": "refer to '/\\$defs/Nothing', which they do not contain",
    "#": "refer to themselves without end",
}


@pytest.mark.parametrize(("reference", "why"), REFERENCES.items())
def test_a_schema_that_cannot_be_checked_alone_is_refused(reference: str, why: str):
    """The error would otherwise come with the first call that gets there."""
    with pytest.raises(ConfigError, match=why):
        given_schema({"name": "f", "parameters": {"type": "object", "allOf": [{"$ref": reference}]}})


def test_a_schema_may_refer_to_its_own_parts():
    tree = {"type": "object", "properties": {"inner": {"$ref": "#"}, "n": {"$ref": "#/$defs/N"}}}
    given_schema({"name": "f", "parameters": {**tree, "$defs": {"N": {"type": "number"}}}})
    assert Validator("f", {**tree, "$defs": {"N": {"type": "number"}}}).error({"inner": {"n": "x"}}) is not None


def validator() -> Validator:
    return Validator("forecast", function_schema(forecast)["function"]["parameters"])


PLACE = {"city": "Oslo", "title": "t"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"place": PLACE}, None),
        ({"place": PLACE, "days": 2.0, "unit": "F", "tags": ["a"]}, None),
        ({}, "forecast: arguments: 'place' is a required property"),
        ({"place": PLACE, "days": True}, "forecast: arguments['days']: True is not of type 'integer'"),
        ({"place": {"city": 1, "title": "t"}}, "forecast: arguments['place']['city']: 1 is not of type 'string'"),
        ({"place": PLACE, "unit": "K"}, "forecast: arguments['unit']: 'K' is not one of ['C', 'F']"),
        (
            {"place": PLACE, "day": 1},
            "forecast: arguments: Additional properties are not allowed ('day' was unexpected)",
        ),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: str | None):
    assert validator().error(arguments) == error


def test_at_most_three_errors_are_told_and_each_is_short():
    wrong = {"place": "x" * 10_000_000, "days": "x" * 1000, "unit": 1, "tags": 2, "json": 3, "x" * 1000: 4}
    error = validator().error(wrong)
    assert error.endswith("; and 4 more") and len(error) < 900


def test_a_whole_float_becomes_an_int_where_the_schema_wants_one():
    fitted = validator().fitted({"place": PLACE, "days": 2.0})
    assert json.dumps(fitted["days"]) == "2"


def test_only_schemas_are_converted_and_not_what_they_quote():
    assert converted({"const": {"type": "float"}, "type": ["string", "null"]}) == {
        "const": {"type": "float"},
        "type": ["string", "null"],
    }
