import json

import pytest

from ray_rl.data.formats.record import Demonstration
from ray_rl.errors import DataError
from ray_rl.types import Message
from tests.unit.data.formats.converting import assistant, convert, reasons, turn, user

QUESTION, ANSWER = turn("user", "1+1?"), turn("assistant", "2")


def test_prompt_and_completion_that_are_text_stay_text_with_their_white_space():
    row = {"prompt": "1+1?\n", "completion": "2"}
    assert convert("prompt_completion", row) == [Demonstration("1+1?\n", "2")]


def test_if_one_of_prompt_and_completion_is_messages_both_are():
    expected = [Demonstration((user("1+1?"),), (assistant("2"),))]
    for prompt in ("1+1?", [QUESTION], QUESTION, json.dumps([QUESTION])):
        for completion in ("2", [ANSWER], ANSWER, json.dumps([ANSWER])):
            if (prompt, completion) != ("1+1?", "2"):
                assert convert("prompt_completion", {"prompt": prompt, "completion": completion}) == expected


def test_a_completion_that_repeats_the_prompt_is_cut_behind_it():
    expected = [Demonstration((user("1+1?"),), (assistant("2"),))]
    assert convert("prompt_completion", {"prompt": [QUESTION], "completion": [QUESTION, ANSWER]}) == expected
    assert convert("prompt_completion", {"prompt": "1+1?", "completion": [QUESTION, ANSWER]}) == expected


def test_answers_in_the_prompt_are_context_and_those_of_a_longer_completion_are_all_imitated():
    again, four = turn("user", "2+2?"), turn("assistant", "4")
    (context,) = convert("prompt_completion", {"prompt": [QUESTION, ANSWER, again], "completion": [four]})
    assert context == Demonstration((user("1+1?"), assistant("2"), user("2+2?")), (assistant("4"),))
    (both,) = convert("prompt_completion", {"prompt": [QUESTION], "completion": [ANSWER, again, four]})
    assert both == Demonstration((user("1+1?"),), (assistant("2"), user("2+2?"), assistant("4")))


def test_text_in_a_column_system_comes_first():
    row = {"prompt": "1+1?", "completion": "2", "system": "Be brief."}
    expected = [Demonstration((Message("system", "Be brief."), user("1+1?")), (assistant("2"),))]
    assert convert("prompt_completion", row) == expected
    assert convert("prompt_completion", row | {"system": None}) == [Demonstration("1+1?", "2")]
    assert convert("messages", {"messages": [QUESTION, ANSWER], "system": "Be brief."}) == expected


def test_a_conversation_is_imitated_from_its_first_answer_on():
    row = {"messages": [turn("system", "Be brief."), QUESTION, ANSWER, turn("user", "Sure?"), turn("assistant", "Yes")]}
    prompt = (Message("system", "Be brief."), user("1+1?"))
    expected = [Demonstration(prompt, (assistant("2"), user("Sure?"), assistant("Yes")))]
    assert convert("messages", row) == expected
    assert convert("messages", {"messages": json.dumps(row["messages"])}) == expected


def test_a_message_of_the_developer_may_come_first():
    row = {"messages": [turn("developer", "Be brief."), QUESTION, ANSWER]}
    prompt = (Message("developer", "Be brief."), user("1+1?"))
    assert convert("messages", row) == [Demonstration(prompt, (assistant("2"),))]


def test_answers_with_weight_0_are_context():
    ignored, sure, yes = turn("assistant", "3", weight=0), turn("user", "Sure?"), turn("assistant", "Yes", weight=1)
    first = convert("messages", {"messages": [QUESTION, ignored, sure, yes]})
    assert first == [Demonstration((user("1+1?"), assistant("3"), user("Sure?")), (assistant("Yes"),))]
    last = convert("messages", {"messages": [QUESTION, yes, sure, ignored]})
    assert last == [Demonstration((user("1+1?"),), (assistant("Yes"),))]
    rows = [{"messages": [QUESTION, yes, sure, ignored, sure, yes]}]
    rows.append({"messages": json.dumps(rows[0]["messages"])})
    rows.append({"messages": [QUESTION, yes, sure, ignored, sure, yes], "system": "Be brief."})
    for row in rows:
        (middle,) = convert("messages", row)
        assert isinstance(middle, Demonstration)
        assert middle.completion[2] == assistant("3")
        assert middle.untrained == {2}


def test_a_weight_that_is_neither_0_nor_1_is_an_error():
    with pytest.raises(DataError, match=r"t.jsonl:1: messages\[1\].weight is 0.5; write 0 .* or 1"):
        convert("messages", {"messages": [QUESTION, turn("assistant", "2", weight=0.5)]})


def test_a_conversation_without_an_answer_to_imitate_is_dropped_with_its_reason():
    assert reasons(
        "messages",
        {"messages": [QUESTION]},
        {"messages": [QUESTION, ANSWER, QUESTION]},
        {"messages": []},
        {"messages": [QUESTION, turn("assistant", "2", weight=0)]},
        {"messages": [QUESTION, turn("assistant", "2"), QUESTION, turn("assistant", " ")]},
    ) == [*["no answer of the assistant at the end"] * 3, "every turn of the assistant has weight 0", "an empty answer"]


def test_tools_are_dropped_with_their_reason():
    call = turn("assistant", None, tool_calls=[{"function": {"name": "weather", "arguments": "{}"}}])
    result = turn("tool", "Sunny", tool_call_id="c1")
    told = {"from": "function_call", "value": "{}"}
    assert set(
        reasons(
            "messages",
            {"messages": [QUESTION, call, result, ANSWER]},
            {"messages": [QUESTION, result, ANSWER]},
            {"messages": [QUESTION, ANSWER], "tools": [{"function": {"name": "weather"}}]},
            {"messages": [QUESTION, ANSWER], "tools": '[{"function": {"name": "weather"}}]'},
        )
        + reasons("sharegpt", {"conversations": [{"from": "human", "value": "Weather?"}, told]})
    ) == {"tools or calls of tools, which are not supported"}
    # Tables fill missing keys with None, OpenAI's own files have empty lists, and others their JSON.
    for nothing in (None, [], "", "[]", " {}\n", "null"):
        rows = {"messages": [QUESTION, ANSWER | {"tool_calls": None}], "tools": nothing}
        assert convert("messages", rows) == [Demonstration((user("1+1?"),), (assistant("2"),))]


def test_content_that_is_null_without_a_call_is_an_error():
    with pytest.raises(DataError, match=r"t.jsonl:2: messages\[1\].content is None; only text is supported"):
        convert("messages", {"messages": [QUESTION, ANSWER]}, {"messages": [QUESTION, turn("assistant", None)]})


def test_the_names_of_sharegpts_turns_become_roles():
    turns = [("system", "Be brief."), ("human", "1+1?"), ("gpt", "2"), ("user", "Sure?"), ("GPT", "Yes")]
    row = {"conversations": [{"from": name, "value": text} for name, text in turns]}
    prompt = (Message("system", "Be brief."), user("1+1?"))
    assert convert("sharegpt", row) == [Demonstration(prompt, (assistant("2"), user("Sure?"), assistant("Yes")))]
    assert convert("sharegpt", {"conversations": [QUESTION, ANSWER]}) == [
        Demonstration((user("1+1?"),), (assistant("2"),))
    ]


def test_a_conversation_that_the_assistant_begins_or_that_one_role_speaks_twice_in_is_dropped():
    human, gpt = {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}
    orders = ([gpt, human, gpt], [human, human, gpt], [human, gpt, gpt], [human, gpt, {"from": "system", "value": "x"}])
    assert reasons("sharegpt", *({"conversations": order} for order in orders)) == [
        "no message of the user before the answer",
        *["roles out of order"] * 2,
        "no answer of the assistant at the end",
    ]
    assert reasons("sharegpt", {"conversations": [human, {"from": "system", "value": "x"}, gpt]}) == [
        "roles out of order"
    ]
    assert reasons("sharegpt", {"conversations": [gpt]}) == ["no message of the user before the answer"]


def test_an_unknown_role_is_an_error():
    with pytest.raises(DataError, match=r"t.jsonl:1: conversations\[0\].role is 'teacher'; the roles are"):
        convert("sharegpt", {"conversations": [{"from": "teacher", "value": "1+1?"}]})


def test_alpacas_input_follows_the_instruction_on_the_next_line():
    row = {"instruction": "Name a river.", "input": "Use one word.", "output": "Ebro"}
    assert convert("alpaca", row, row | {"input": ""}, row | {"input": None}) == [
        Demonstration("Name a river.\nUse one word.", "Ebro"),
        Demonstration("Name a river.", "Ebro"),
        Demonstration("Name a river.", "Ebro"),
    ]


def test_alpacas_history_and_system_message_make_a_conversation():
    row = {"instruction": "And 2+2?", "output": "4", "system": "Be brief.", "history": [["1+1?", "2"]]}
    system = Message("system", "Be brief.")
    assert convert("alpaca", row) == [
        Demonstration((system, user("1+1?"), assistant("2"), user("And 2+2?")), (assistant("4"),))
    ]
    with pytest.raises(DataError, match=r"history\[0\] is \['1\+1\?'\]; write \[question, answer\], both text"):
        convert("alpaca", row | {"history": [["1+1?"]]})
    with pytest.raises(DataError, match="history is 'none'; write a list of"):
        convert("alpaca", row | {"history": "none"})


def test_text_that_is_cut_inside_an_emoji_is_an_error_wherever_it_stands():
    cut = "\ud83d"
    for name, row in [
        ("prompt_completion", {"prompt": "1+1?", "completion": cut}),
        ("messages", {"messages": [QUESTION, turn("assistant", cut)]}),
        ("alpaca", {"instruction": cut, "output": "2"}),
        ("alpaca", {"instruction": "1+1?", "output": "2", "history": [["Hi", cut]]}),
        ("stepwise", {"prompt": "1+1?", "completions": [cut], "labels": [True]}),
    ]:
        with pytest.raises(DataError, match=r"t.jsonl:1: .* half of a surrogate pair"):
            convert(name, row)
