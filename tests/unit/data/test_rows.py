import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from ray_rl.config.data import Addition, Hub, Jsonl, Parquet, ReasoningGym
from ray_rl.data.layout import Layout
from ray_rl.data.opening import open_rows
from ray_rl.data.rows import Row, make_row
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Message, column_value


def row_of(record, **changes):
    return make_row(record, id="t:3", where="t:3", layout=Layout(**changes))


def test_a_question_of_addition_is_a_function_of_seed_and_index():
    rows, again = (open_rows(Addition(maximum=50), seed=7) for _ in range(2))
    other = open_rows(Addition(maximum=50), seed=8)
    assert [rows[i] for i in range(50)] == [again[i] for i in reversed(range(50))][::-1]
    assert [rows[i].prompt for i in range(50)] != [other[i].prompt for i in range(50)]


def test_the_answer_of_addition_is_the_sum_and_its_numbers_stay_in_range():
    rows = open_rows(Addition(maximum=3, size=200), seed=0)
    seen = set()
    for index in range(len(rows)):
        left, right = map(int, re.findall(r"\d+", rows[index].prompt))
        assert rows[index].columns == {"answer": str(left + right)}
        seen |= {left, right}
    assert seen == {0, 1, 2, 3}


def test_sums_of_any_number_of_digits_are_equally_frequent_if_so_wanted():
    rows = open_rows(Addition(maximum=499, by_digits=True, size=3000), seed=0)
    largest = [max(map(int, re.findall(r"\d+", rows[i].prompt))) for i in range(len(rows))]
    assert max(largest) <= 499
    # A third is drawn from 0..9; of the other two thirds 1 % and less happen to be as small.
    assert 0.31 < sum(each < 10 for each in largest) / len(largest) < 0.37
    assert 0.28 < sum(10 <= each < 100 for each in largest) / len(largest) < 0.37


def test_a_row_keeps_its_other_columns_and_renames_those_that_are_named():
    row = row_of({"prompt": "hi", "solution": "42", "level": 3}, renames={"answer": "solution"})
    assert row == Row("t:3", "hi", {"level": 3, "answer": "42"})


def test_a_prompt_may_be_a_conversation():
    turns = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hi"}]
    assert row_of({"prompt": turns}).prompt == (Message("system", "Be brief"), Message("user", "hi"))


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        (["hi"], {}, r"t:3: \['hi'\] is not a row; write an object with"),
        ({"question": "hi"}, {}, "t:3: no column 'prompt'; the columns are question; set data.prompt_column"),
        ({"promt": "hi", "x": 1}, {}, r"the columns are promt, x \(nearest: promt\)"),
        ({"prompt": "  "}, {}, "t:3: prompt is empty"),
        ({"prompt": 42}, {}, "t:3: prompt is 42; write text or a list of {role, content} messages"),
        ({"prompt": []}, {}, "t:3: prompt is"),
        ({"prompt": [{"role": "user"}]}, {}, r"t:3: prompt\[0\].content is None; only text is supported"),
        ({"prompt": ["hi"]}, {}, r"t:3: prompt\[0\] is 'hi'; write a message"),
        ({"prompt": "hi", "a": 1}, {"renames": {"b": "c"}}, "no column 'c'; .* correct data.columns.b"),
        ({"prompt": "hi", "a": 1, "b": 2}, {"renames": {"b": "a"}}, "data.columns.b gives a name that another"),
        ({"prompt": "hi", "lengths": 1}, {}, "reward functions get their own 'lengths'; rename the column"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_the_remedy(record, changes, message):
    with pytest.raises(DataError, match=message):
        row_of(record, **changes)


def test_a_jsonl_row_is_named_by_its_line_and_blank_lines_do_not_count(jsonl):
    rows = open_rows(Jsonl(path=jsonl({"prompt": "one"}, "", {"prompt": "two", "answer": 2})), seed=0)
    assert [rows[0], rows[1]] == [Row("train.jsonl:1", "one", {}), Row("train.jsonl:3", "two", {"answer": 2})]


def test_a_line_that_is_not_json_is_named_with_file_and_line(jsonl):
    rows = open_rows(Jsonl(path=jsonl({"prompt": "one"}, '{"prompt": two}')), seed=0)
    with pytest.raises(DataError, match=r"^train.jsonl:2: not JSON: Expecting value at column 12 of "):
        rows[1]


def test_a_line_that_is_not_utf8_is_named_with_file_and_line(jsonl, tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"^latin.jsonl:1: not UTF-8: .* convert the file"):
        open_rows(Jsonl(path="latin.jsonl"), seed=0)[0]


@pytest.mark.parametrize(("path", "message"), [("no.jsonl", "does not exist"), (".", "no files in it end in .jsonl")])
def test_a_file_that_is_not_there_is_named(jsonl, path, message):
    with pytest.raises(DataError, match=f"data.path={re.escape(path)}:? {message}"):
        open_rows(Jsonl(path=path), seed=0)


def test_an_empty_file_is_refused(jsonl):
    with pytest.raises(DataError, match=r"train.jsonl: no lines"):
        open_rows(Jsonl(path=jsonl("")), seed=0)


def test_parquet_rows_are_those_of_the_file(tmp_path):
    path = tmp_path / "train.parquet"
    turns = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]]
    pyarrow.parquet.write_table(pyarrow.table({"turns": turns, "n": [1, 2]}), path)
    rows = open_rows(Parquet(path=str(path), prompt_column="turns", columns={"answer": "n"}), seed=0)
    assert len(rows) == 2
    assert rows[1] == Row("train.parquet:2", (Message("user", "two"),), {"answer": 2})


def test_a_file_that_is_not_parquet_is_refused(jsonl):
    with pytest.raises(DataError, match=r"train.jsonl: not a parquet file: .*; correct data.path or data.kind"):
        open_rows(Parquet(path=jsonl({"prompt": "one"})), seed=0)


def test_a_local_folder_serves_as_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"prompt": "one", "answer": "1"}) + "\n")
    name = str(tmp_path / "set")
    rows = open_rows(Hub(name=name), seed=0)
    assert rows[0] == Row(f"{name}/train:1", "one", {"answer": "1"})
    with pytest.raises(DataError, match=r"split=nope: datasets.load_dataset failed: .*; correct the names"):
        open_rows(Hub(name=name, split="nope"), seed=0)


def test_a_reasoning_gym_row_brings_what_its_verifier_needs():
    rows = open_rows(ReasoningGym(task="chain_sum", size=5, options={"min_terms": 2, "max_terms": 2}), seed=3)
    row = rows[4]
    assert (len(rows), row.id, row.prompt) == (5, "chain_sum/4", row.columns["entry"]["question"])
    assert row.columns["task"] == {"name": "chain_sum", "options": {"min_terms": 2, "max_terms": 2}}
    assert row.columns["answer"] == row.columns["entry"]["answer"]
    json.dumps(row.columns)


def test_a_reasoning_gym_task_that_does_not_exist_gets_the_nearest_names():
    with pytest.raises(
        ConfigError, match=r"data.task=leg_count: reasoning_gym has no such task; nearest: leg_counting"
    ):
        open_rows(ReasoningGym(task="leg_count"), seed=0)


def test_options_that_do_not_suit_a_reasoning_gym_task_are_refused():
    with pytest.raises(ConfigError, match=r"data.options=.* does not suit the task chain_sum: .*legs"):
        open_rows(ReasoningGym(task="chain_sum", options={"legs": 2}), seed=0)


def test_a_dotted_path_names_a_value_inside_of_a_column():
    columns = {"reward_model": {"ground_truth": "42", "a.b": 1}, "extra.info": 7, "turns": [1]}
    assert column_value(columns, "reward_model.ground_truth") == "42"
    assert column_value(columns, "extra.info") == 7
    for missing in ("answer", "reward_model.style", "reward_model.ground_truth.x", "turns.0", "extra"):
        with pytest.raises(KeyError):
            column_value(columns, missing)


def test_columns_are_what_a_checkpoint_can_hold():
    import datetime
    from decimal import Decimal

    import numpy as np

    day = datetime.date(2024, 2, 29)
    record = {
        "prompt": "hi",
        "day": day,
        "at": {"time": datetime.datetime(2024, 2, 29, 1, 2)},
        "price": Decimal("1.50"),
        "missing": [float("nan"), None],
        "pair": (1, "a"),
        "array": np.arange(3),
        "scalar": np.float32(0.5),
    }
    columns = row_of(record).columns
    assert json.loads(json.dumps(columns, allow_nan=False)) == columns
    assert columns == {
        "day": "2024-02-29",
        "at": {"time": "2024-02-29T01:02:00"},
        "price": "1.50",
        "missing": [None, None],
        "pair": [1, "a"],
        "array": [0, 1, 2],
        "scalar": 0.5,
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"png", r"t:3: x is b'png', a bytes, which neither records nor checkpoints can hold"),
        ([{"deep": float("inf")}], r"t:3: x.deep is inf, a float"),
        ({1: 2}, r"t:3: x is {1: 2}, a dict, .* dictionaries with text for keys"),
        ([10**5000], r"t:3: x is an integer of 16610 bits, a int"),
        ({"a": ["\udc00"]}, r"t:3: x.a: character 1 is '\\udc00', half of a surrogate pair"),
    ],
)
def test_a_column_that_no_checkpoint_can_hold_is_named_before_the_start(value, message):
    with pytest.raises(DataError, match=message):
        row_of({"prompt": "hi", "x": value})


def test_a_column_that_is_nested_without_end_is_refused():
    value: list = []
    value.append(value)
    with pytest.raises(DataError, match="t:3: x: nested deeper than 200 levels"):
        row_of({"prompt": "hi", "x": value})
