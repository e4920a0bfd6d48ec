import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from ray_rl.app.data_checks import check_data
from ray_rl.errors import ConfigError, DataError

NUMBER = {"kind": "number"}


def test_a_source_with_all_that_its_rewards_need_passes(run_config, jsonl):
    path = jsonl({"prompt": "What is", "answer": 1}, {"prompt": "What", "answer": 2})
    check_data(run_config({"kind": "jsonl", "path": path}, NUMBER))
    check_data(run_config({"kind": "addition"}, NUMBER, {"kind": "math_verify"}))


def test_the_first_bad_line_of_a_jsonl_file_is_named(run_config, jsonl):
    path = jsonl({"prompt": "What"}, {"prompt": "is"}, '{"prompt": ', "{")
    with pytest.raises(DataError, match=r"^train.jsonl:3: not JSON"):
        check_data(run_config({"kind": "jsonl", "path": path}))


def test_a_row_without_the_column_of_a_reward_is_named(run_config, jsonl):
    path = jsonl({"prompt": "What", "answer": 1}, {"prompt": "is", "solution": 2})
    message = r"^train.jsonl:2: no column 'answer', which rewards\[0\] \(number\) .* the columns are solution;"
    with pytest.raises(DataError, match=message):
        check_data(run_config({"kind": "jsonl", "path": path}, NUMBER))


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ({"kind": "jsonl", "path": "train.jsonl"}, ", or rename one: data.columns: {sum: ...}"),
        (
            {"kind": "custom", "function": "users_rows_of_check:f"},
            ", or let users_rows_of_check:f return a column 'sum'",
        ),
        ({"kind": "addition"}, ""),
    ],
)
def test_the_advice_about_a_column_is_one_that_this_kind_of_data_can_follow(
    run_config, jsonl, tmp_path, monkeypatch, data, advice
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_rows_of_check.py").write_text("def f():\n    return [{'prompt': 'What', 'answer': 1}]\n")
    jsonl({"prompt": "What", "answer": 1})
    with pytest.raises(DataError) as caught:
        check_data(run_config(data, {"kind": "number", "column": "sum"}))
    assert str(caught.value).endswith(f"; the columns are answer; set rewards[0].column{advice}")


def test_the_schema_of_a_parquet_file_must_have_the_columns(run_config, tmp_path):
    path = str(tmp_path / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"question": ["What"], "n": [1]}), path)
    with pytest.raises(DataError, match="no column 'prompt'; the columns are n, question"):
        check_data(run_config({"kind": "parquet", "path": path}))
    with pytest.raises(DataError, match=r"no column 'answer', .* the columns are n;"):
        check_data(run_config({"kind": "parquet", "path": path, "prompt_column": "question"}, NUMBER))
    renamed = {"kind": "parquet", "path": path, "prompt_column": "question", "columns": {"answer": "n"}}
    check_data(run_config(renamed, NUMBER))


def test_every_row_is_shown_to_the_checks_of_the_caller(run_config, jsonl):
    path = jsonl({"prompt": "What", "answer": 1}, {"prompt": "is", "answer": 2})
    seen = []
    check_data(run_config({"kind": "jsonl", "path": path}), row_checks=[lambda row: seen.append(row.columns["answer"])])
    assert sorted(seen) == [1, 2]


def test_expected_calls_are_a_list_in_a_column_that_exists(run_config, jsonl):
    data = {"kind": "jsonl", "path": jsonl({"prompt": "What", "calls": [{"f": {"a": [1]}}], "answer": 1})}
    check_data(run_config(data, {"kind": "right_call"}))
    with pytest.raises(DataError, match=r"no column 'expected', which rewards\[0\] \(right_call\) compares with"):
        check_data(run_config(data, {"kind": "right_call", "column": "expected"}))


def test_a_mapping_or_a_list_is_no_answer(run_config, jsonl):
    path = jsonl({"prompt": "What", "meta": {"gold": {"value": 1}}, "both": [1, 2], "one": ["1"], "none": None})
    data = {"kind": "jsonl", "path": path}
    with pytest.raises(DataError, match=r"^train.jsonl:1: meta.gold is {'value': 1}, .* for example meta.gold.value"):
        check_data(run_config(data, {"kind": "number", "column": "meta.gold"}))
    with pytest.raises(DataError, match=r"^train.jsonl:1: both is \[1, 2\], and rewards\[0\] \(math_verify\) compares"):
        check_data(run_config(data, {"kind": "math_verify", "column": "both"}))
    said = []
    for column in ("meta.gold.value", "one", "none"):
        check_data(run_config(data, {"kind": "number", "column": column}), say=said.append)
    assert said == [
        "data: 1 of 1 rows have null for an answer that a reward compares with; it has no opinion on their completions"
    ]


def test_a_task_that_does_not_exist_is_refused(run_config):
    with pytest.raises(ConfigError, match=r"data.task=chain_sums: .* nearest: chain_sum"):
        check_data(run_config({"kind": "reasoning_gym", "task": "chain_sums"}, {"kind": "reasoning_gym"}))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "no module named 'no_such_module' on the import path"),
        ("users_check:g", "users_check has no 'g'; it has f"),
        ("users_check:N", "a int, which cannot be called"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_refused(run_config, tmp_path, monkeypatch, path, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_check.py").write_text("N = 1\ndef f():\n    return []\n")
    with pytest.raises(ConfigError, match=f"^data.function={path}: {message}"):
        check_data(run_config({"kind": "custom", "function": path}))
    with pytest.raises(ConfigError, match=rf"^rewards\[0\].function={path}: {message}"):
        check_data(run_config({"kind": "addition"}, {"kind": "custom", "function": path}))


def test_a_limit_that_no_prompt_meets_is_refused_with_the_first_row(run_config, jsonl):
    path = jsonl({"prompt": "What is a"}, {"prompt": "What is"})
    message = r"^train.jsonl:1: 6 tokens with the chat template, more than data.max_prompt_tokens=4, .* raise data.max"
    with pytest.raises(DataError, match=message):
        check_data(run_config({"kind": "jsonl", "path": path, "max_prompt_tokens": 4}))
    check_data(run_config({"kind": "jsonl", "path": path, "max_prompt_tokens": 5}))


def test_lengths_are_checked_where_the_caller_says_that_the_model_lies(run_config, tmp_path, write_tokenizer):
    config = run_config({"kind": "addition", "max_prompt_tokens": 4}, NUMBER, model={"path": "packaged-model"})
    check_data(config)
    with pytest.raises(DataError, match=r"^addition/0: \d+ tokens"):
        check_data(config, model_folder=write_tokenizer(tmp_path / "model"))


def test_a_conversation_is_refused_for_a_reward_model_that_reads_plain_text(run_config, jsonl, tmp_path):
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text('{"ray_rl_chat": false}')
    turns = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "What"}]
    data = {"kind": "jsonl", "path": jsonl({"prompt": "What"}, {"prompt": turns[1:]}, {"prompt": turns})}
    judge = {"kind": "model", "paths": [str(tmp_path / "judge")]}
    with pytest.raises(DataError, match=r"^train.jsonl:3: the prompt has the turns system, user, and the reward model"):
        check_data(run_config(data, judge))
    (tmp_path / "judge" / "config.json").write_text("{}")
    check_data(run_config(data, judge))


def test_the_checks_load_no_torch():
    code = "import sys, ray_rl.app.data_checks; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_that_will_be_left_out_are_counted_before_the_start(run_config, jsonl):
    path = jsonl({"prompt": "What"}, {"prompt": "cut \ud83d"}, "{", {"prompt": "is"})
    said = []
    checked = check_data(run_config({"kind": "jsonl", "path": path, "on_bad_row": "skip"}), say=said.append)
    assert said[0].startswith("data: 2 of 4 rows are wrong and will be left out; the first: train.jsonl:2: prompt: ")
    assert checked.ahead(lambda: pytest.fail("all rows were checked")) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None}, "prompt is None"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 42}, "prompt is 42"),
        ({"prompt": "cut \ud83d"}, "prompt: character 5 is .*half of a surrogate pair"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "prompt ends with"),
        # The template of the tests takes no tools.
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, ".*no tools here"),
        ({"prompt": "What", "answer": "\udc00"}, "answer: character 1 is .*half of a surrogate pair"),
    ],
)
def test_a_row_that_would_fail_when_it_comes_is_named_before_the_start(run_config, jsonl, row, message):
    path = jsonl(*[{"prompt": "What is"}] * 300, row)
    with pytest.raises(DataError, match=rf"^train.jsonl:301: {message}"):
        check_data(run_config({"kind": "jsonl", "path": path}))


def test_how_many_prompts_are_too_long_is_said_before_the_start(run_config, jsonl):
    path = jsonl({"prompt": "What"}, {"prompt": "What is a deep deep thought"}, {"prompt": "What " * 10_000})
    said = []
    check_data(run_config({"kind": "jsonl", "path": path, "max_prompt_tokens": 5}), say=said.append)
    assert said == ["data: 2 of 3 prompts are longer than data.max_prompt_tokens=5 and will be left out"]
