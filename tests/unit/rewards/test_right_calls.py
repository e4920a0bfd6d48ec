import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_rl.errors import DataError
from ray_rl.rewards.tools.right_calls import are_right, expected_calls, is_right
from ray_rl.types import ToolCall

LEADERBOARD = Path(__file__).parents[4] / "shared" / "data" / "tools"


def right(arguments: dict[str, Any], expected: Any, name: str = "f") -> bool:
    (one,) = expected_calls(expected)
    return is_right(ToolCall(name, arguments), one)


POSSIBLE = {"f": {"city": ["San Francisco, CA", "SF"], "days": [5], "unit": ["", "C"]}}


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        ({"city": "SF", "days": 5}, True),
        ({"city": "san francisco ca", "days": 5, "unit": "C"}, True),
        ({"city": "SF", "days": 5.0}, True),
        ({"city": "SF", "days": "5"}, False),
        ({"city": "SF", "days": 6}, False),
        ({"city": "Oslo", "days": 5}, False),
        ({"city": "SF"}, False),
        ({"city": "SF", "days": 5, "unit": "F"}, False),
        ({"city": "SF", "days": 5, "more": 1}, False),
        ({"city": ["SF"], "days": 5}, False),
    ],
)
def test_each_argument_has_one_of_its_possible_values(arguments: dict[str, Any], verdict: bool):
    assert right(arguments, [POSSIBLE]) is verdict


def test_the_name_is_compared_exactly():
    assert not right({"city": "SF", "days": 5}, [POSSIBLE], name="F")


@pytest.mark.parametrize(
    ("value", "wanted", "verdict"),
    [
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (None, None, True),
        (0, None, False),
        ("It's", 'it"s', True),
        ("a-b_c*d^e.f/g,h i", "abcdefghi", True),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ((1, 2), [1, 2], True),
        (["A b"], ["ab"], True),
        ({"k": [1]}, {"k": [1]}, True),
        ({"k": 1}, {"k": 1, "l": 2}, False),
        ({"k": 1, "l": 2}, {"k": 1}, False),
        (10**400, 1.0, False),
    ],
)
def test_values_of_exact_calls_are_compared_by_kind(value: Any, wanted: Any, verdict: bool):
    assert right({"x": value}, {"name": "f", "arguments": {"x": wanted}}) is verdict


def test_dictionaries_of_the_leaderboard_hold_possible_values():
    expected = [{"f": {"x": [{"low": [1, 2], "high": ["", 9]}], "y": [[{"k": [1]}, {"k": ["a", "b"]}]]}}]
    good = {"x": {"low": 2}, "y": [{"k": 1}, {"k": "B"}]}
    assert right(good, expected)
    assert right({**good, "x": {"low": 1, "high": 9}}, expected)
    for wrong in ({"high": 9}, {"low": 3}, {"low": 1, "other": 1}, {"low": 1, "high": 8}, 5):
        assert not right({**good, "x": wrong}, expected)
    assert not right({**good, "y": [{"k": "B"}, {"k": 1}]}, expected)


def test_null_arguments_of_a_table_are_optional():
    assert right({"a": 1}, {"name": "f", "arguments": {"a": 1, "b": None}})
    assert right({"a": 1}, [{"f": {"a": [1], "b": None}, "g": None}])


@pytest.mark.parametrize(
    "form",
    [
        [{"name": "f", "arguments": {"a": 1}}],
        {"name": "f", "arguments": {"a": 1}},
        [{"name": "f", "arguments": '{"a": 1}'}],
        [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        '[{"f": {"a": [1]}}]',
    ],
)
def test_all_forms_of_a_column_are_read(form: Any):
    assert right({"a": 1}, form) and not right({"a": 2}, form)


def test_null_is_no_opinion_and_an_empty_list_expects_no_call():
    assert expected_calls(None) is None is expected_calls("null")
    assert expected_calls([]) == [] == expected_calls("[]")


@pytest.mark.parametrize(
    "value",
    [7, "f(1)", [7], [{}], ["f"], [{"f": 1}], [{"f": {"a": 1}}], [{"name": "f", "arguments": "{"}],
     [{"name": "f", "arguments": [1]}], "[" * 100_000],
)  # fmt: skip
def test_a_column_of_another_form_is_refused(value: Any):
    with pytest.raises(DataError):
        expected_calls(value)


def test_parallel_calls_may_have_any_order_and_none_may_be_left():
    expected = expected_calls([{"f": {"a": [1]}}, {"f": {"a": [2]}}])
    one, two = ToolCall("f", {"a": 1}), ToolCall("f", {"a": 2})
    assert are_right([one, two], expected) and are_right([two, one], expected)
    assert not are_right([one], expected) and not are_right([one, one], expected)
    assert not are_right([one, two, two], expected) and not are_right([], expected)


def test_a_way_to_fit_all_calls_is_found_if_there_is_one():
    """The first call fits the first expectation, but is needed for the second."""
    expected = expected_calls([{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}])
    assert are_right([ToolCall("f", {"a": 1}), ToolCall("f", {"a": 2})], expected)


def test_a_malformed_call_is_never_right():
    (one,) = expected_calls([{"f": {}}])
    assert is_right(ToolCall("f", {}), one)
    assert not is_right(ToolCall("f", {}, "Your tool call is ..."), one)
    assert not is_right(ToolCall("f", None), one)


# The data of the leaderboard: calls that are right by its rules, and others that are wrong.

PARTS = ("simple_python", "multiple", "parallel")


def rows(name: str) -> list[dict[str, Any]]:
    file = LEADERBOARD / f"BFCL_v4_{name}.json"
    if not file.exists():
        pytest.skip(f"{file} is not here: the samples of the leaderboard are not part of this repository")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def resolved(value: Any) -> Any:
    """A value that a model could write: the first possible one inside dictionaries."""
    if isinstance(value, dict):
        inside = {key: values for key, values in value.items() if not (isinstance(values, list) and "" in values)}
        return {key: resolved(values[0] if isinstance(values, list) else values) for key, values in inside.items()}
    return [resolved(each) for each in value] if isinstance(value, list) else value


def first_calls(truth: list[dict[str, Any]], *, last: bool = False) -> list[ToolCall]:
    """The calls with the first (or last) possible value of every argument; optional ones are left out (or given)."""
    calls = []
    for entry in truth:
        ((name, possible),) = entry.items()
        chosen = {}
        for key, values in possible.items():
            given = [value for value in values if value != ""]
            if given and (last or "" not in values):
                chosen[key] = resolved(given[-1 if last else 0])
        calls.append(ToolCall(name, chosen))
    return calls


def spoiled(calls: list[ToolCall]) -> Iterator[list[ToolCall]]:
    """Calls with one fault each. A boolean becomes a text, because both may be possible."""
    first, *others = calls
    yield []
    yield [*calls, first]
    yield [ToolCall(first.name + "x", first.arguments), *others]
    yield [ToolCall(first.name, {**first.arguments, "no_such_argument": 1}), *others]
    for key, value in first.arguments.items():
        wrong = copy.deepcopy(dict(first.arguments))
        wrong[key] = {
            str: lambda v: v + "xyzzy", int: lambda v: v + 7919, float: lambda v: v + 7919.5
        }.get(type(value), lambda v: "xyzzy")(value)  # fmt: skip
        yield [ToolCall(first.name, wrong), *others]


@pytest.mark.parametrize("part", PARTS)
def test_possible_calls_of_the_leaderboard_are_right_and_spoiled_ones_are_wrong(part: str):
    truths = [row["ground_truth"] for row in rows(f"{part}.possible_answer")]
    checked = 0
    for truth in truths:
        expected = expected_calls(truth)
        for calls in (first_calls(truth), first_calls(truth, last=True)):
            assert are_right(calls, expected), truth
            assert are_right(calls[::-1], expected), truth
            for wrong in spoiled(calls):
                assert not are_right(wrong, expected), (truth, wrong)
                checked += 1
    assert len(truths) >= 199 and checked > 5 * len(truths)


def test_no_call_is_right_where_the_leaderboard_calls_everything_irrelevant():
    assert are_right([], []) and not are_right([ToolCall("f", {})], [])


def test_every_function_of_the_leaderboard_is_a_tool():
    from ray_rl.environments.tools.schema import Validator, given_schema

    for part in PARTS:
        truths = [row["ground_truth"] for row in rows(f"{part}.possible_answer")]
        made = valid = 0
        for row, truth in list(zip(rows(part), truths, strict=True))[::50]:
            schemas = {each["name"]: given_schema(each)["function"] for each in row["function"]}
            for call in first_calls(truth):
                error = Validator(call.name, schemas[call.name]["parameters"]).error(call.arguments)
                valid += error is None
                made += 1
        assert valid >= made - 1  # of all rows, three possible calls do not have the types of their own schemas
