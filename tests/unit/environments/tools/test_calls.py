import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_rl.environments.tools.calls import OWN, call_parser, hermes, llama3_json, parser_of_template, pythonic
from ray_rl.errors import ConfigError
from ray_rl.types import ToolCall

ADD = '{"name": "add", "arguments": {"a": 1, "b": 2}}'


def tagged(inside: str) -> str:
    return f"<tool_call>{inside}</tool_call>"


@pytest.mark.parametrize(
    "text",
    [
        tagged(ADD),
        f"<tool_call>\n{ADD}\n</tool_call><|im_end|>\n",
        f"<tool_call>{ADD}",  # the end of the completion ends the call
        f"<tool_call>{ADD}<|im_end|>",
        f"<think>I could call <tool_call>x</tool_call></think>{tagged(ADD)}",
    ],
)
def test_a_well_formed_call_is_read(text: str):
    assert hermes(text).calls == (ToolCall("add", {"a": 1, "b": 2}),)


def test_the_text_around_calls_is_the_content():
    parsed = hermes(f"First. {tagged(ADD)} Then. {tagged(ADD)}</s>")
    assert parsed.content == "First.  Then." and len(parsed.calls) == 2


def test_a_tag_inside_a_string_is_part_of_the_string():
    arguments = {"text": "<tool_call></tool_call>"}
    call = hermes(tagged(json.dumps({"name": "write", "arguments": arguments}))).calls
    assert call == (ToolCall("write", arguments),)


def test_one_bad_call_of_several_does_not_lose_the_others():
    first, second, third, fourth = hermes(f'{tagged(ADD)}{tagged("{")}<tool_call>{{"name" 1<tool_call>{ADD}').calls
    assert first.error is None and fourth == ToolCall("add", {"a": 1, "b": 2})
    assert second.error.startswith("Your 2. tool call is not valid JSON")
    assert third.error.startswith("Your 3. tool call is not valid JSON: Expecting ':' delimiter at character 9")


def test_a_completion_without_calls_is_content_only():
    parsed = hermes("The answer is 3.<|im_end|>")
    assert (parsed.content, parsed.calls) == ("The answer is 3.", ())


def test_what_is_only_thought_is_no_call():
    assert hermes(f"<think>{tagged(ADD)}</think>3").calls == ()
    assert hermes(f"<think>{tagged(ADD)}").calls == ()


NESTED = "[" * 65 + "]" * 65
FAULTS = {
    "": "Expecting value at character 1, before '</tool_call>'",
    '{"name": "add", "arguments": {"a": 1 "b": 2}}': "Expecting ',' delimiter at character 38, before '\"b\": 2}}",
    '{"name": "add"}': "without the key 'arguments'",
    '{"arguments": {}}': "without the name of a tool",
    '{"name": 7, "arguments": {}}': "without the name of a tool",
    '{"name": "", "arguments": {}}': "without the name of a tool",
    '{"name": "add", "arguments": "x"}': "'arguments' must be an object",
    '{"name": "add", "arguments": null}': "'arguments' must be an object",
    "[1]": "not an object of the form",
    f"{ADD} and more": "</tool_call> expected, not 'and more</tool_call>'",
    '{"name": "add", "arguments": {"a": 1, "a": 2}}': "the key 'a' occurs twice",
    '{"name": "add", "arguments": {"a": NaN}}': "NaN is not JSON",
    '{"name": "add", "arguments": {"a": -Infinity}}': "-Infinity is not JSON",
    '{"name": "add", "arguments": {"a": 1e999}}': "the number '1e999' is too large",
    '{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}": "a number has too many digits",
    '{"name": "add", "arguments": {"a": ' + NESTED + "}}": "nested more than 64 levels deep",
    '{"a":' * 100_000: "nested more than 64 levels deep",
    '{"name": "add", "arguments": {"a": "\\ud800"}}': "half of a surrogate pair",
    '{"name": "add", "arguments": {"a": "\n"}}': "Invalid control character at character 37",
}


@pytest.mark.parametrize(("inside", "why"), FAULTS.items(), ids=range(len(FAULTS)))
def test_a_fault_is_told_with_its_place(inside: str, why: str):
    (call,) = hermes(tagged(inside)).calls
    assert call.arguments is None
    assert why in call.error
    assert len(call.error) < 250


def test_the_name_of_a_malformed_call_is_kept_if_it_can_be_read():
    (call,) = hermes(tagged('{"name": "add", "arguments": 3}')).calls
    assert call.name == "add"


@pytest.mark.parametrize("name", ["a b", "\u00e9\u4e2d", "x" * 5000, "__import__('os')", "\x00", "<|im_end|>"])
def test_odd_names_are_read_as_they_are(name: str):
    (call,) = hermes(tagged(json.dumps({"name": name, "arguments": {}}))).calls
    assert call == ToolCall(name, {})


def test_long_texts_take_linear_time():
    begun_s = time.process_time()
    many = hermes("<tool_call>{" * 20_000).calls
    assert len(many) == 257 and many[-1].error == "Your 257. tool call is one of more than 256"
    hermes(" " * 1_000_000 + tagged("[" * 100_000))
    assert hermes(" \n" * 500_000 + "x").calls == ()
    assert len(pythonic("[a(" + " " * 90_000).calls) == 1
    assert time.process_time() - begun_s < 3


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "add", "parameters": {"a": 1}}<|eot_id|>', [ToolCall("add", {"a": 1})]),
        ('<|python_tag|>{"name": "add", "arguments": {}}<|eom_id|>', [ToolCall("add", {})]),
        (
            '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}',
            [ToolCall("a", {}), ToolCall("b", {})],
        ),
        ('{"name": "a", "parameters": {}};', [ToolCall("a", {})]),
        ('The answer is {"a": 1}.', []),
    ],
)
def test_calls_in_the_form_of_llama_are_read(text: str, calls: list[ToolCall]):
    assert list(llama3_json(text).calls) == calls


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"name": "a", "parameters": {}} and more', "text behind the JSON, 'and more'"),
        ("<|python_tag|>", "Expecting value"),
        ('<|python_tag|>search.call(query="x")', "Expecting value at character 1, before 'search.call"),
        ('{"name": "a"}', "without the key 'parameters'"),
        ('{"name": "a", "parameters": [1]}', "'parameters' must be an object"),
    ],
)
def test_faults_in_the_form_of_llama_are_told(text: str, why: str):
    assert why in llama3_json(text).calls[-1].error


def test_python_calls_are_read_without_running_them():
    text = "[math.add(a=1, b=-2.5), f(x=[1, (2, 3)], y={'k': True}, z=null), g()]<|eot_id|>"
    assert pythonic(text).calls == (
        ToolCall("math.add", {"a": 1, "b": -2.5}),
        ToolCall("f", {"x": [1, [2, 3]], "y": {"k": True}, "z": None}),
        ToolCall("g", {}),
    )


@pytest.mark.parametrize("text", ["[1, 2]", "The list [add(a=1)]", "hello"])
def test_a_text_that_does_not_begin_with_a_list_of_calls_has_none(text: str):
    assert pythonic(text).calls == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[f(1)]", "arguments need their names"),
        ("[f(x=open('a'))]", "x must be a constant"),
        ("[f(x=y)]", "x must be a constant"),
        ("[f(x=b'a')]", "x must be a constant"),
        ("[f(x=1j)]", "x must be a constant"),
        ("[f(x=1e999)]", "x must be a constant"),
        ("[f(x=f'{1}')]", "x must be a constant"),
        ("[f(**{'a': 1})]", "** is not possible"),
        ("[f(x={1: 2})]", "keys of a dictionary must be different strings"),
        ("[f(x={'a': 1, 'a': 2})]", "keys of a dictionary must be different strings"),
        ("[f(x='\\ud800')]", "half of a surrogate pair"),
        ("[f(x=1", "was never closed at character 3"),
        ("[f(x=1), 2]", "every entry must be a call"),
        ("[f()()]", "every entry must be a call"),
        (f"[f(x={NESTED})]", "nested more than 64 levels"),
        ("[f(x=" + "(" * 1000, "too many nested parentheses"),
        ("[f(x=" + "-" * 50_000 + "1)]", "nested too deeply"),
        ("[f(x=" + "a." * 40_000 + "b)]", "nested too deeply"),
        ("[f(x='" + "a" * 200_000 + "')]", "more than 100000"),
        ("[f(x=" + "9" * 5000 + ")]", "Exceeds the limit"),
        ("[f(x=\x00)]", ""),
    ],
)
def test_faults_of_python_calls_are_told(text: str, why: str):
    (call,) = pythonic(text).calls
    assert call.error.startswith("Your tool call is not a list of Python calls: ")
    assert why in call.error


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>", "{", "}", "[", "]", "(", ")", '"', "'", ":",
    ",", ";", "=", "\\", "\\u", "d800", '"name"', '"arguments"', '"parameters"', "add", "a", "1", "-", ".", "e9", "\n",
    " ", "\x00", "\ud800", "\u4e2d", "#", "lambda", "None", "true", "*", "**", "<|im_end|>", "f'", "b'",
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_text_makes_a_parser_raise(text: str):
    for parser in OWN.values():
        for begin in ("", "[add(a=", "<tool_call>", '{"name": "add", "parameters": {'):
            for call in parser(begin + text).calls:
                assert (call.arguments is None) == (call.error is not None)
                json.dumps(call.arguments, ensure_ascii=False).encode()


TEMPLATES = {
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_vl": "hermes",
    "qwen3_instruct_2507": "hermes",
    "qwen3_6": "qwen3_coder",
    "qwen3_5_think": "qwen3_coder",
    "nemotron_3_nano": "qwen3_coder",
    "glm4moe": "glm45",
    "llama3_1": "llama3_json",
    "llama3_2": "llama3_json",
    "lfm2_2_5": "lfm2",
    "deepseekv3": "deepseek_v3",
    "gemma4": "gemma4",
    "gptoss": "openai",
}


@pytest.mark.parametrize(("template", "parser"), TEMPLATES.items())
def test_a_published_template_says_which_parser_reads_its_calls(template: str, parser: str):
    import importlib.util

    trl = Path(importlib.util.find_spec("trl").origin).parent  # found, not imported: trl loads torch
    assert parser_of_template((trl / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")) == parser


def test_a_template_without_calls_gets_an_error_that_lists_the_names():
    with pytest.raises(ConfigError, match=r"parser=auto.*hermes, llama3_json, pythonic"):
        call_parser("auto", template="{{ messages }}", schemas=[])


class Others:
    names = ("glm45",)

    def parser(self, name, schemas):
        assert name == "glm45" and list(schemas) == [{}]
        return hermes


def test_other_parsers_are_found_by_name_and_by_template():
    assert call_parser("glm45", template=None, schemas=[{}], others=Others()) is hermes
    assert call_parser("auto", template="<tool_call><arg_key>", schemas=[{}], others=Others()) is hermes
    assert call_parser("hermes", template=None, schemas=[]) is OWN["hermes"]


def test_an_unknown_parser_gets_an_error_that_lists_the_names():
    with pytest.raises(ConfigError, match=r"parser=herms: set it to one of auto, hermes, .*, pythonic, glm45$"):
        call_parser("herms", template=None, schemas=[], others=Others())
    with pytest.raises(ConfigError, match=r"needs the parser 'mistral', which does not exist here"):
        call_parser("auto", template="[TOOL_CALLS]", schemas=[])
