import json

import pytest

from ray_rl.data.columns import shorten
from ray_rl.data.messages import read_prompt
from ray_rl.errors import DataError
from ray_rl.types import Message

USER = {"role": "user", "content": "What is 1+1?"}
ANSWER = {"role": "assistant", "content": "2"}


def test_a_conversation_stored_as_json_text_is_read_as_a_conversation():
    assert read_prompt(json.dumps([{"role": "system", "content": "Be brief"}, USER]), where="t:3") == (
        Message("system", "Be brief"),
        Message("user", "What is 1+1?"),
    )
    assert read_prompt("  " + json.dumps([USER], indent=2), where="t:3") == (Message("user", "What is 1+1?"),)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]: sort this list",
        '{"role": "admin"} is JSON. What is its key?',
        '[{"role": "user"}, {"role": "admin"}]',
        '[{"name": "a"}] How many entries?',
        "[{'role': x for x in y}] What does this Python do?",
    ],
)
def test_a_question_about_json_or_code_stays_text(text):
    assert read_prompt(text, where="t:3") == text


def test_the_text_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+1?", "image": None}]
    assert read_prompt([{"role": "user", "content": parts}], where="t:3") == (Message("user", "What is 1+1?"),)


def test_keys_without_a_value_say_nothing():
    turn = USER | {"name": None, "tool_calls": [], "reasoning_content": ""}
    assert read_prompt([turn], where="t:3") == (Message("user", "What is 1+1?"),)


def test_answers_in_the_middle_stay_and_those_at_the_end_are_left_out_where_it_is_asked_for():
    conversation = [USER, ANSWER, USER, ANSWER, ANSWER]
    kept = read_prompt(conversation, where="t:3", drop_last_answer=True)
    assert [message.role for message in kept] == ["user", "assistant", "user"]
    assert len(read_prompt(conversation[:3], where="t:3")) == 3


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([USER, ANSWER], r"t:3 ends with a message of the assistant, '2': .* data.drop_last_answer: true"),
        (json.dumps([USER, ANSWER]), "t:3 ends with a message of the assistant"),
        ([ANSWER], "t:3 ends with a message of the assistant"),
        ([{"role": "system", "content": "Be brief"}], "t:3 has no message of the user"),
        (str([USER]), "t:3 is text that holds messages, .* store a list"),
        (json.dumps(USER), "t:3 is text that holds messages, .* store a list"),
        (json.dumps([{"from": "human", "value": "hi"}]), r"t:3\[0\] is .* not {from: ..., value: ...}"),
        ([{"from": "human", "value": "hi"}], r"t:3\[0\] is .* not {from: ..., value: ...}"),
        ([{"role": "human", "content": "hi"}], r"t:3\[0\].role is 'human'; the roles are .*'human' is 'user' here"),
        ([USER, {"role": "gpt", "content": "hi"}], r"t:3\[1\].role is 'gpt'; .*'gpt' is 'assistant' here"),
        ([{"role": "critic", "content": "hi"}], r"t:3\[0\].role is 'critic'; the roles are system, developer, user"),
        ([{"role": "user", "content": " "}], r"t:3\[0\].content is empty"),
        ([USER | {"name": "Ann"}], r"t:3\[0\] has name in addition to role and content, which no prompt would show"),
        (
            [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "2"}],
            r"t:3\[1\] has tool_calls in addition to role",
        ),
        (
            [USER, {"role": "tool", "content": "2", "tool_call_id": "1"}],
            r"t:3\[1\] has tool_call_id in addition to role",
        ),
        ([USER, ANSWER | {"reasoning_content": "easy"}, USER], r"t:3\[1\] has reasoning_content in addition to role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}],
            r"t:3\[0\].content\[0\] is .* only text is supported",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "hi", "image": "x"}]}], "only text is supported"),
        ([{"role": "user", "content": []}], "only text is supported"),
        (None, "t:3 is None; write text or a list"),
        ({"role": "user", "content": "hi"}, "t:3 is .* write text or a list"),
        ("cut \ud83d", r"t:3: character 5 is '\\ud83d', half of a surrogate pair"),
        ([{"role": "user", "content": "\udc00"}], r"t:3\[0\].content: character 1 is '\\udc00', half"),
        (json.dumps([{"role": "user", "content": "a\ud83d"}]), r"t:3\[0\].content: character 2 is '\\ud83d', half"),
    ],
)
def test_a_prompt_that_is_none_is_refused_with_the_remedy(prompt, message):
    with pytest.raises(DataError, match=message):
        read_prompt(prompt, where="t:3")


def test_a_value_is_shown_in_a_line_however_large_or_deep_it_is():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 50_000_000, deep, {str(i): i for i in range(100_000)}, 10**50_000):
        assert len(shorten(value)) < 90
    assert shorten(["hi", 1, None]) == "['hi', 1, None]"
