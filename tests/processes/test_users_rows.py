"""Rows of a user's function, which runs in a process of its own."""

import pytest

from ray_rl.config.data import CustomSource
from ray_rl.data.opening import open_rows
from ray_rl.data.rows import Row
from ray_rl.errors import DataError


def test_a_users_function_gives_rows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_rows.py").write_text(
        "def riddles(size):\n    return [{'prompt': f'riddle {i}', 'answer': i} for i in range(size)]\n"
        "def without_prompt():\n    return [{'question': 'hi'}]\n"
        "def reserved():\n    return [{'prompt': 'hi', 'lengths': 1}]\n"
        "def nothing():\n    return []\n"
        "def text():\n    return 'riddles'\n"
    )
    rows = open_rows(CustomSource(function="users_rows:riddles", options={"size": 3}), seed=0)
    assert len(rows) == 3
    assert rows[2] == Row("users_rows:riddles[2]", "riddle 2", {"answer": 2})
    with pytest.raises(DataError) as caught:
        open_rows(CustomSource(function="users_rows:without_prompt"), seed=0)[0]
    assert str(caught.value) == (
        "users_rows:without_prompt[0]: no column 'prompt'; the columns are question; return it from "
        "users_rows:without_prompt"
    )
    with pytest.raises(DataError, match=r"'lengths'; rename the column in users_rows:reserved$"):
        open_rows(CustomSource(function="users_rows:reserved"), seed=0)[0]
    with pytest.raises(DataError, match="users_rows:nothing returned no rows"):
        open_rows(CustomSource(function="users_rows:nothing"), seed=0)
    with pytest.raises(DataError, match="users_rows:text returned 'riddles'; return a list of mappings"):
        open_rows(CustomSource(function="users_rows:text"), seed=0)


def test_rows_of_a_user_are_checked_like_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_cut.py").write_text("def rows():\n    return [{'prompt': 'a', 'x': ['\\ud83d']}, {1: 'a'}]\n")
    rows = open_rows(CustomSource(function="users_cut:rows"), seed=0)
    with pytest.raises(DataError, match=r"users_cut:rows\[0\]: x: character 1 is '\\ud83d', half of a surrogate pair"):
        rows[0]
    with pytest.raises(DataError, match=r"users_cut:rows\[1\]: the names of the columns \[1\] are not all text"):
        rows[1]
