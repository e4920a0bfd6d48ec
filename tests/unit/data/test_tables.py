import json
import re
import time

import pyarrow
import pyarrow.parquet
import pytest

from ray_rl.config.data import Csv, Hub, Jsonl, Parquet
from ray_rl.data import tables
from ray_rl.data.opening import open_rows
from ray_rl.data.tables import rows_digest
from ray_rl.errors import DataError


def opened(config):
    return open_rows(config, seed=0)


def write_parquet(path, columns, **settings):
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **settings)
    return path


def test_csv_values_are_text_as_it_is_written(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffprompt,answer,note\nWhat?,007,\n"a, ""b""\nsecond line","1,234",NA\n', encoding="utf-8")
    rows = opened(Csv(path=str(path)))
    assert (rows[0].id, rows[0].prompt, rows[0].columns) == ("t.csv:1", "What?", {"answer": "007", "note": ""})
    assert (rows[1].prompt, rows[1].columns["answer"]) == ('a, "b"\nsecond line', "1,234")
    assert rows[1].columns["note"] == "NA"
    path.with_suffix(".tsv").write_text("prompt\tanswer\nWhat, now?\t1\n")
    assert opened(Csv(path=str(tmp_path / "t.tsv"), delimiter="\t"))[0].prompt == "What, now?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,answer\nWhat?\n", "not a CSV file with a header: .*Expected 2 columns, got 1"),
        ("prompt,answer\nWhat?,1\na,b,c\n", "Expected 2 columns, got 3"),
        ("prompt,prompt\na,b\n", "the columns prompt are in the header twice"),
        ("prompt,answer\n", "no rows"),
        ("", "not a CSV file with a header"),
        ("question\nWhat?\n", "no column 'prompt'; the columns are question; set data.prompt_column"),
    ],
)
def test_a_csv_file_that_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"t.csv: .*{message}"):
        opened(Csv(path=str(path)))


def test_a_damaged_page_is_named_with_its_rows(tmp_path):
    path = write_parquet(
        tmp_path / "t.parquet", {"prompt": [f"question {i}" * 20 for i in range(300)]}, row_group_size=100
    )
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"t.parquet: row group 2 of 3 \(rows 101 to 200\) is damaged: .* write the"):
        opened(Parquet(path=str(path)))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"t.parquet: not a parquet file"):
        opened(Parquet(path=str(path)))


def test_a_row_whose_text_is_no_utf8_is_named(tmp_path):
    text = pyarrow.array([b"one", b"caf\xe9"]).view(pyarrow.string())
    path = write_parquet(tmp_path / "t.parquet", {"prompt": text})
    rows = opened(Parquet(path=str(path)))
    assert rows[0].prompt == "one"
    with pytest.raises(DataError, match=r"t.parquet: row 2: cannot be read: .*utf-8"):
        rows[1]


def test_parquet_folders_keep_file_and_row_and_refuse_other_columns(tmp_path):
    write_parquet(tmp_path / "set" / "b.parquet", {"prompt": ["three"], "answer": [3]})
    write_parquet(tmp_path / "set" / "a.parquet", {"answer": [1, 2], "prompt": ["one", "two"]})
    for path in ("set", "set/*.parquet"):
        rows = opened(Parquet(path=str(tmp_path / path)))
        assert [(rows[i].id, rows[i].prompt) for i in range(3)] == [
            ("a.parquet:1", "one"),
            ("a.parquet:2", "two"),
            ("b.parquet:1", "three"),
        ]
        assert sorted(rows.digests) == ["a.parquet", "b.parquet"]
    write_parquet(tmp_path / "set" / "c.parquet", {"prompt": ["four"], "solution": [3]})
    with pytest.raises(DataError, match=r"c.parquet: the columns are prompt, solution, and those of .*a.parquet are"):
        opened(Parquet(path=str(tmp_path / "set")))


def test_a_large_table_is_mapped_and_has_the_same_rows(tmp_path, monkeypatch):
    columns = {"prompt": [f"question {i}" for i in range(300)], "answer": list(range(300))}
    path = write_parquet(tmp_path / "t.parquet", columns, row_group_size=100)
    in_memory = opened(Parquet(path=str(path)))
    monkeypatch.setattr(tables, "WHOLE_BYTES", 100)
    mapped = opened(Parquet(path=str(path)))
    assert [mapped[i] for i in range(300)] == [in_memory[i] for i in range(300)]


def test_what_save_to_disk_wrote_is_read_under_every_kind_that_names_it(tmp_path):
    import datasets

    data = datasets.Dataset.from_dict({"question": ["one", "two"], "answer": ["1", "2"]})
    data.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "dict"))
    for folder in ("plain", "dict"):
        path = str(tmp_path / folder)
        for config in (Hub(name=path), Parquet(path=path), Jsonl(path=path)):
            rows = opened(config)
            assert (len(rows), rows[1].prompt, rows[1].columns) == (2, "two", {"answer": "2"})
            assert rows[1].id == f"{path}/train:2"
    assert opened(Hub(name=str(tmp_path / "dict"), split="test"))[0].prompt == "two"
    with pytest.raises(DataError, match=r"no split 'dev'; it has train, test; set data.split"):
        opened(Hub(name=str(tmp_path / "dict"), split="dev"))
    (tmp_path / "plain" / "data-00000-of-00001.arrow").write_bytes(b"torn")
    with pytest.raises(DataError, match="data set of save_to_disk cannot be read"):
        opened(Hub(name=str(tmp_path / "plain")))


def test_a_folder_of_two_schemas_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text(json.dumps({"prompt": "one", "answer": "1"}) + "\n")
    (tmp_path / "set" / "b.jsonl").write_text(json.dumps({"question": "two", "n": 2}) + "\n")
    with pytest.raises(DataError, match=r"datasets.load_dataset failed: .*; correct the names, or the files") as caught:
        opened(Hub(name=str(tmp_path / "set")))
    assert "column" in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_the_digest_of_rows_tells_another_row_and_survives_what_json_does_not_know():
    assert rows_digest([{"a": 1}]) == rows_digest([{"a": 1}]) != rows_digest([{"a": 2}])
    assert rows_digest([{"a": object()}]) == rows_digest([{"a": object()}])
    assert rows_digest([{(1, 2): 1}]).startswith("rows:")
    many = [{"a": i} for i in range(5000)]
    assert rows_digest(many) != rows_digest(many[:-1])


def test_a_row_of_many_megabytes_is_told_to_be_too_long_in_bounded_time(tokenizer, jsonl):
    from ray_rl.data.source import build_source

    path = jsonl({"prompt": "What " * 2_000_000}, {"prompt": "What is"}, {"prompt": "a" * 10_000_000})
    source = build_source(Jsonl(path=path, shuffle=False), seed=0, tokenizer=tokenizer)
    start = time.monotonic()
    assert [prompt.id for prompt in source.take(2)] == ["train.jsonl:2", "train.jsonl:2"]
    assert time.monotonic() - start < 10
    assert source.filtered.total == 3
    with pytest.raises(DataError, match=re.escape("all 1 prompts are longer; so much that they were not tokenised")):
        build_source(Jsonl(path=jsonl({"prompt": "a" * 10**6})), seed=0, tokenizer=tokenizer).take(1)


def test_one_changed_row_of_a_data_set_like_gsm8k_is_noticed():
    rows = [{"question": "q", "answer": number} for number in range(7473)]
    changed = [*rows[:4001], {"question": "q", "answer": 0}, *rows[4002:]]
    assert rows_digest(rows) == rows_digest(list(rows)) != rows_digest(changed)
    assert rows_digest([{"a": 1}] * 20_000).startswith("rows-sampled:")
