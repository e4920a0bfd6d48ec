import gzip
import json
import re

import pytest

from ray_rl.config.data import Jsonl
from ray_rl.data import json_lines
from ray_rl.data.opening import open_rows
from ray_rl.errors import DataError

FIRST = '{"prompt": "one"}\n'


def rows_of(path, **settings):
    return open_rows(Jsonl(path=str(path), **settings), seed=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # Each column is the one of the line as it is in the file.
        ('{"prompt": two}', "not JSON: Expecting value at column 12 of"),
        ('  {"prompt": two}', "not JSON: Expecting value at column 14 of"),
        ('{"prompt": ', "not JSON: .* at column 12 of"),
        ('{"prompt": "caf\u00e9" x}', r"not JSON: Expecting ',' delimiter at column 19 of"),
        ('{"prompt": "a"} {"prompt": "b"}', "not JSON: Extra data at column 17 of"),
        (
            '{"prompt": "a", "n": ' + "9" * 5000 + "}",
            r"an integer of 5000 digits at column 22 of .* as text, in quotes",
        ),
        ('{"prompt": "a", "n": -' + "9" * 5000 + "}", "an integer of 5000 digits at column 22 of"),
        ('{"prompt": "a", "n": NaN}', "NaN, which is not JSON at column 22 of .* write null"),
        ('{"prompt": "a", "n": [-Infinity]}', "-Infinity, which is not JSON at column 23 of"),
        ('{"prompt": "a", "x": {"prompt": 1}, "prompt": "b"}', 'the key "prompt" a second time .* at column 45 of'),
        ('{"prompt": "a", "n": ' + "[" * 100_000 + "}", "nested deeper than 200 levels at column 221 of"),
        ('{"prompt": "a", "n": ' + '{"a":' * 300 + "1" + "}" * 301, "nested deeper than 200 levels at column 1017 of"),
        ('["a"]', r"\['a'\] is not a row; write an object"),
        ("7", "7 is not a row"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_line_that_is_wrong_is_named_with_line_and_column(tmp_path, line, message, end):
    path = tmp_path / "t.jsonl"
    path.write_text(FIRST + line + end, newline="")
    rows = rows_of(path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:2: {message}"):
        rows[1]


@pytest.mark.parametrize(("name", "kind"), [("t.csv", "csv"), ("t.TSV", "csv"), ("t.parquet", "parquet")])
def test_a_file_of_another_kind_by_its_name_is_told_that_kind(tmp_path, name, kind):
    path = tmp_path / name
    path.write_text("prompt,answer\nHi,Ho\n")
    with pytest.raises(
        DataError, match=rf":1: not JSON: .*; or set data\.kind={kind}, which the name of the file says"
    ):
        rows_of(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=rf":1: not UTF-8: .*; or set data\.kind={kind}, which"):
        rows_of(path)


def test_brackets_inside_of_text_do_not_count_as_depth(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "[{" * 5000 + '\\"'}) + "\n")
    assert rows_of(path)[0].prompt == "[{" * 5000 + '\\"'


def test_a_file_that_is_one_list_gets_the_command_that_converts_it(tmp_path):
    path = tmp_path / "t.json"
    for text in ('[{"prompt": "one"}]', '[\n{"prompt": "one"}\n]'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"t.json:1: .*jq -c '\.\[\]'"):
            rows_of(path)


def test_a_byte_order_mark_is_skipped_and_utf16_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + FIRST.encode())
    assert rows_of(path)[0].prompt == "one"
    path.write_text(FIRST, encoding="utf-16")
    with pytest.raises(DataError, match=r"t.jsonl: UTF-16, not UTF-8; convert the file: iconv"):
        rows_of(path)


def test_a_compressed_file_has_the_rows_of_the_plain_one(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress((FIRST + "\n" + '{"prompt": "two"}').encode()))
    rows = rows_of(path)
    assert [(rows[i].id, rows[i].prompt) for i in range(2)] == [("t.jsonl.gz:1", "one"), ("t.jsonl.gz:3", "two")]
    for damaged in (path.read_bytes()[:-9], b"no gzip", path.read_bytes()[:12] + b"\xff" * 20):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"t.jsonl.gz: cannot be read: .*correct data.path, or the file"):
            rows_of(path)


def test_folders_and_patterns_have_the_rows_of_their_files_in_order(tmp_path):
    for name in ("b/part.jsonl", "a/part.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(FIRST.replace("one", name) + FIRST)
    (tmp_path / "a" / ".part.jsonl").write_text("left over")
    (tmp_path / "a" / "README.md").write_text("# Data")
    for path in (tmp_path, tmp_path / "*" / "part.jsonl", tmp_path / "**" / "*.jsonl"):
        rows = rows_of(path)
        assert len(rows) == 4
        assert [rows[i].prompt for i in (0, 2)] == ["a/part.jsonl", "b/part.jsonl"]
        assert [rows[i].id for i in range(4)] == [f"{part}/part.jsonl:{n}" for part in "ab" for n in (1, 2)]
    with pytest.raises(DataError, match="no file matches the pattern"):
        rows_of(tmp_path / "*.csv")


def test_a_file_that_is_too_large_for_memory_is_read_line_by_line(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}", "answer": i}) + "\n\n" for i in range(50)))
    whole = rows_of(path)
    monkeypatch.setattr(json_lines, "WHOLE_BYTES", 100)
    lines = rows_of(path)
    assert [lines[i] for i in reversed(range(50))] == [whole[i] for i in reversed(range(50))]
