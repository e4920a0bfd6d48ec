import re
import typing
from pathlib import Path

import pytest

from ray_rl.config.data import OfflineFormat
from ray_rl.data.formats.choose import FORMATS, choose_format
from ray_rl.data.formats.record import RECORDS, Dropped, Record
from ray_rl.errors import ConfigError, DataError
from tests.unit.data.formats.converting import convert, source_records, turn

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello!"
QUESTION, ANSWER = turn("user", "Hi"), turn("assistant", "Hello!")
STEPS = {"steps": [{"completions": [{"text": "It is 2.", "rating": 1}], "chosen_completion": 0}]}
ROWS = {
    "prompt_completion": {"prompt": "Hi", "completion": "Hello!", "rejected": "a name of something else"},
    "messages": {"messages": [QUESTION, ANSWER], "prompt": "Hi"},
    "sharegpt": {"id": 1, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
    "alpaca": {"instruction": "Say hello.", "input": "", "output": "Hello!"},
    "preference": {"prompt": "Hi", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, turn("assistant", "No")]},
    "hh_rlhf": {"chosen": DIALOGUE, "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    "openai_preference": {
        "input": {"messages": [QUESTION]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [turn("assistant", "No")],
    },
    "ultrafeedback": {
        "instruction": "Hi",
        "completions": [{"response": each, "annotations": {"x": {"Rating": each}}} for each in ("1", "2")],
    },
    "helpsteer2_preference": {"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": 1},
    "nectar": {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}],
    },
    "kto": {"prompt": "Hi", "completion": "Hello!", "label": True},
    "stepwise": {"prompt": "Hi", "completions": ["a"], "labels": [True]},
    "prm800k": {"question": {"problem": "1+1?"}, "label": STEPS},
    "math_shepherd": {"input": "1+1? Step 1: 2 \u043a\u0438", "label": "1+1? Step 1: 2 +"},
}
JOINED = {"helpsteer2", "openassistant"}
"""Forms whose records need several rows."""


@pytest.mark.parametrize("name", ROWS)
def test_each_form_is_detected_and_gives_the_records_it_promises(name):
    found = choose_format("auto", source_records(ROWS[name]), wanted=FORMATS[name].wanted)
    assert found.name == name
    (record,) = convert(name, ROWS[name])
    assert isinstance(record, RECORDS[found.wanted])


def test_forms_of_several_rows_are_detected_by_one():
    rated = source_records({"prompt": "Hi", "response": "Hello!", "helpfulness": 3})
    assert choose_format("auto", rated, wanted="comparison").name == "helpsteer2"
    names = ("message_id", "parent_id", "message_tree_id", "text", "role", "rank")
    assert choose_format("auto", source_records(dict.fromkeys(names)), wanted="comparison").name == "openassistant"
    assert ROWS.keys() | JOINED == FORMATS.keys()


def test_data_of_another_kind_is_refused_with_the_algorithm_for_it():
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "No"}
    with pytest.raises(DataError) as refusal:
        choose_format("auto", source_records(row), wanted="demonstration")
    for part in (
        "t.jsonl:1: the columns are chosen, prompt, rejected: this is data for reward_model, dpo, ipo, orpo or simpo",
        "(preference: chosen and rejected answers",
        "and sft needs data in one of the forms prompt_completion (prompt, completion); messages (messages);",
        "set algorithm.kind to reward_model, dpo, ipo, orpo or simpo, or data.format if the rows have one of",
        "; or, to imitate the chosen answers, set data.columns: {completion: chosen}",
    ):
        assert part in str(refusal.value)
    with pytest.raises(ConfigError, match=r"data.format=kto: this is data for kto .* set algorithm.kind to kto$"):
        choose_format("kto", source_records(row), wanted="comparison")


def test_the_name_of_a_form_decides_where_a_file_has_columns_of_two():
    both = source_records(ROWS["preference"] | ROWS["messages"])
    assert choose_format("auto", both, wanted="comparison").name == "preference"
    assert choose_format("messages", both, wanted="demonstration").name == "messages"


def test_rows_of_no_known_form_are_refused_with_their_columns_and_those_of_the_forms():
    with pytest.raises(DataError) as refusal:
        choose_format("auto", source_records({"question": "1+1?", "answer": "2"}), wanted="judged")
    assert str(refusal.value) == (
        "t.jsonl:1: the columns are answer, question, as in no known form of data; kto needs data in the form kto "
        "(prompt, completion, label); rename columns, for example data.columns: {prompt: question, completion: answer}"
    )
    with pytest.raises(DataError, match=r"t.jsonl:1: \['Hi'\] is not an object with columns, as in no known form"):
        choose_format("auto", source_records(["Hi"]), wanted="judged")
    with pytest.raises(DataError, match=r"data.columns: {prompt: question, chosen: better, rejected: worse}$"):
        choose_format("auto", source_records({"question": "1+1?", "answer": "2"}), wanted="comparison")


@pytest.mark.parametrize("values", [(True, False), (True, True)])
def test_a_column_of_truth_values_under_another_name_is_proposed_as_the_label(values):
    rows = [{"prompt": "1+1?", "completion": "2", "score": 0.5, "good": value} for value in values]
    with pytest.raises(DataError, match=r"; or, if good says what is desirable, set data.columns: {label: good}$"):
        choose_format("auto", source_records(*rows), wanted="judged")
    with pytest.raises(DataError) as refusal:
        choose_format("auto", source_records(*rows, {"prompt": "?", "completion": "2", "good": 7}), wanted="judged")
    assert "desirable, set" not in str(refusal.value)


def test_a_file_with_rows_of_two_forms_is_refused_until_one_is_named():
    rows = source_records(ROWS["preference"], ROWS["hh_rlhf"])
    with pytest.raises(DataError, match=r"so the data can be preference or hh_rlhf; set data.format to one of them"):
        choose_format("auto", rows, wanted="comparison")
    assert choose_format("hh_rlhf", rows, wanted="comparison").name == "hh_rlhf"


def test_a_wrong_row_among_the_first_does_not_hide_the_form():
    rows = source_records(None, {}, ROWS["kto"])
    assert choose_format("auto", rows, wanted="judged").name == "kto"


def test_the_configuration_names_all_forms():
    assert set(typing.get_args(OfflineFormat)) == FORMATS.keys()


def test_the_page_about_data_lists_all_forms():
    page = (Path(__file__).parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|", page, re.MULTILINE))
    assert rows.keys() == FORMATS.keys()


JUNK = (None, True, 0, -1.5, float("nan"), 10**5000, "", "x", "\ud83d", b"x", [], [None], [[]], [{}], {}, {"steps": 1})


def spoiled(value: object):
    """Yields copies of a value with each part, at any depth, in the place of which there is something else."""
    yield from JUNK
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: each for name, each in value.items() if name != key}
            yield from (value | {key: wrong} for wrong in spoiled(inner))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], wrong, *value[index + 1 :]] for wrong in spoiled(inner))


@pytest.mark.parametrize("name", ROWS)
def test_whatever_stands_in_a_row_gives_a_record_a_reason_or_an_error_with_its_place(name):
    errors = 0
    for row in spoiled(ROWS[name]):
        try:
            assert all(isinstance(each, Record | Dropped) for each in convert(name, row))
        except DataError as error:
            assert str(error).startswith("t.jsonl:1: ")
            errors += 1
    assert errors > len(JUNK) / 2
