"""vLLM's own parsers of tool calls, behind the interface of the environments. Importing them takes 15 seconds."""

import json
import logging
from functools import cache
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ray_rl.environments.tools.calls import MARKS, OWN, call_parser, hermes, llama3_json, pythonic
from ray_rl.environments.tools.schema import function_schema
from ray_rl.errors import ConfigError
from ray_rl.models.packaged import resolve_model
from ray_rl.rollout.tool_parsers import OPENER, VllmParsers
from ray_rl.types import ToolCall

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""vLLM's own, when it is imported."""


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


SCHEMAS = [function_schema(add)]


@cache
def tokenizer(*special: str) -> PreTrainedTokenizerBase:
    loaded = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    loaded.add_special_tokens({"additional_special_tokens": list(special)})
    return loaded


def parsed(name: str, text: str, *special: str) -> Any:
    return call_parser(name, template=None, schemas=SCHEMAS, others=VllmParsers(tokenizer(*special)))(text)


WELL_FORMED = {
    "qwen3_coder": (
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n"
        "</tool_call>",
        ("<tool_call>", "</tool_call>"),
    ),
    "glm45": (
        "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>2</arg_value>"
        "\n</tool_call>",
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "qwen3_json": ('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>', ()),
    "phi4_mini_json": ('functools[{"name": "add", "arguments": {"a": 1, "b": 2}}]', ()),
    "olmo3": ("<function_calls>add(a=1, b=2)</function_calls>", ()),
    "lfm2": ("<|tool_call_start|>[add(a=1, b=2)]<|tool_call_end|>", ("<|tool_call_start|>", "<|tool_call_end|>")),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_a_well_formed_call_is_read_by_the_parser_of_its_form(name: str):
    text, special = WELL_FORMED[name]
    assert parsed(name, f"I add. {text}" if name != "phi4_mini_json" else text, *special).calls == (
        ToolCall("add", {"a": 1, "b": 2}),
    )


@pytest.mark.parametrize("name", WELL_FORMED)
def test_a_text_without_a_call_is_content(name: str):
    assert parsed(name, "The answer is 3.", *WELL_FORMED[name][1]).calls == ()
    assert parsed(name, "The answer is 3.", *WELL_FORMED[name][1]).content == "The answer is 3."


BROKEN = {
    "qwen3_json": '<tool_call>{"name": "add", "arguments": {"a": 1 "b": 2}}</tool_call>',
    "phi4_mini_json": 'functools[{"name": "add", "arguments": {"a": 1 "b": 2}}]',
    "olmo3": "<function_calls>add(a=1, b=</function_calls>",
    "lfm2": "<|tool_call_start|>[add(a=1, b=]<|tool_call_end|>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_call_is_malformed_and_nothing_is_logged(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    parser = call_parser(
        name, template=None, schemas=SCHEMAS, others=VllmParsers(tokenizer(*WELL_FORMED[name][1]))
    )  # fmt: skip
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        (call,) = parser(BROKEN[name]).calls
    assert call.arguments is None and call.error.startswith("Your tool call is not well formed")
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def test_a_parser_that_needs_other_tokens_is_refused_at_the_start():
    with pytest.raises(ConfigError, match=r"parser=deepseek_v3: .*choose the parser of the model's family"):
        parsed("deepseek_v3", "")


def test_a_parser_that_reads_no_text_is_refused_at_the_start():
    with pytest.raises(ConfigError, match="parser=openai"):
        parsed("openai", "")


def test_an_unknown_name_gets_all_names():
    with pytest.raises(ConfigError, match=r"auto, hermes, llama3_json, pythonic, apertus, .*, xlam$"):
        parsed("hermess", "")


def test_every_parser_that_a_template_asks_for_exists():
    names = {*VllmParsers(tokenizer()).names, *OWN}
    assert {name for _, name in MARKS} <= names


TAGS = [mark for mark, name in MARKS if name not in OWN and mark not in ("<arg_key>", "<|channel|>", "<function=")]


@pytest.mark.parametrize("mark", TAGS)
def test_the_marks_of_other_forms_are_seen_as_the_beginning_of_a_call(mark: str):
    assert OPENER.search(f"I call {mark}") is not None


A, B = '{"name": "a", "arguments": {"x": [1, {"c": null}]}}', '{"name": "b", "parameters": {}}'


@pytest.mark.parametrize(
    ("ours", "name", "text"),
    [
        (hermes, "hermes", f"a <tool_call>{A}</tool_call>"),
        (hermes, "hermes", f"<tool_call>{A}</tool_call>\n<tool_call>\n{A}"),
        (llama3_json, "llama3_json", f"<|python_tag|>{A}; {B}"),
        (pythonic, "pythonic", "[add(a=1, b=-2), f(x='a', y=[1, 2], z={'k': True})]"),
    ],
)
def test_our_parsers_read_well_formed_calls_as_vllm_does(ours: Any, name: str, text: str):
    others = VllmParsers(tokenizer("<|python_tag|>", "<tool_call>")).parser(name, SCHEMAS)
    assert ours(text).calls == others(text).calls != ()


def test_the_schema_of_a_function_is_what_transformers_makes():
    """Chat templates are made for schemas by `transformers.utils.get_json_schema`."""
    from transformers.utils import get_json_schema

    def many(a: int, b: float, note: str = "", more: list[int] = [], deep: dict[str, bool] | None = None) -> float:  # noqa: B006
        """Adds numbers.

        Args:
            a: The first number.
            b: The second number.
            note: A note.
            more: More of them.
            deep: Anything.
        """
        return a + b

    ours, theirs = function_schema(many)["function"], get_json_schema(many)["function"]
    del theirs["return"]
    del ours["parameters"]["additionalProperties"]
    for each in ours["parameters"]["properties"].values():
        each.pop("default", None)
    # The same set of values in other words.
    assert ours["parameters"]["properties"].pop("deep")["anyOf"][1] == {"type": "null"}
    assert theirs["parameters"]["properties"].pop("deep")["nullable"] is True
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
