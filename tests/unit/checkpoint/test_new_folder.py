import os
from functools import partial
from pathlib import Path

import pytest

from ray_rl.checkpoint.new_folder import check_new, new_folder, replaced_folder
from ray_rl.errors import UserError

FILES = {"config.json": "{}", "model.safetensors": "weights"}


def write(to):
    with new_folder(to) as partial:
        for name, text in FILES.items():
            (partial / name).write_text(text)
        (partial / "templates").mkdir()
        (partial / "templates" / "tool.jinja").touch()


def holds(folder):
    assert {path.name for path in folder.iterdir()} == {*FILES, "templates"}
    assert (folder / "templates" / "tool.jinja").is_file()


def test_a_folder_that_does_not_exist_is_made_with_those_above_it(tmp_path):
    write(tmp_path / "a" / "b")
    holds(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a") == ["b"]


def test_an_empty_folder_stays_the_folder_that_it_is(tmp_path):
    """As it must where it is a mounted volume, which no rename can take the place of."""
    (tmp_path / "volume").mkdir()
    number = (tmp_path / "volume").stat().st_ino
    check_new(tmp_path / "volume", outside=tmp_path / "runs")
    write(tmp_path / "volume")
    holds(tmp_path / "volume")
    assert (tmp_path / "volume").stat().st_ino == number


def test_a_new_volume_counts_as_empty(tmp_path):
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    check_new(tmp_path / "volume", outside=tmp_path / "runs")


def test_the_working_folder_may_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_new(Path("."), outside=tmp_path / "runs")
    write(Path("."))
    holds(Path.cwd())
    holds(tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_the_folder_is_where_it_leads(tmp_path, exists):
    if exists:
        (tmp_path / "disk").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "disk")
    check_new(tmp_path / "mine", outside=tmp_path / "runs")
    write(tmp_path / "mine")
    assert (tmp_path / "mine").is_symlink()
    holds(tmp_path / "disk")


def test_what_a_death_left_is_neither_in_the_way_nor_mixed_in(tmp_path):
    (tmp_path / "volume" / ".ray_rl.partial" / "old").mkdir(parents=True)
    check_new(tmp_path / "volume", outside=tmp_path / "runs")
    write(tmp_path / "volume")
    holds(tmp_path / "volume")


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("make", [new_folder, partial(replaced_folder, mark="new")])
def test_a_failure_leaves_everything_as_it_was(tmp_path, exists, make):
    if exists:
        (tmp_path / "mine").mkdir()
    with pytest.raises(OSError, match="full"), make(tmp_path / "mine") as partial:
        (partial / "config.json").touch()
        raise OSError("full")
    assert [path.name for path in tmp_path.rglob("*")] == (["mine"] if exists else [])


def test_a_folder_is_replaced_whole(tmp_path):
    (tmp_path / "export" / "old").mkdir(parents=True)
    (tmp_path / "export" / "new").touch()
    with replaced_folder(tmp_path / "export", mark="new") as partial:
        (partial / "new").touch()
        assert sorted(os.listdir(tmp_path / "export")) == ["new", "old"]
    assert os.listdir(tmp_path / "export") == ["new"]
    assert os.listdir(tmp_path) == ["export"]


def test_a_folder_of_somebody_else_is_kept_beside_the_new_one(tmp_path):
    for name in ("mine", "mine_too"):
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / name).touch()
        with replaced_folder(tmp_path / "export", mark="new") as partial:
            (partial / "new").touch()
        (tmp_path / "export" / "new").unlink()
        (tmp_path / "export").rmdir()
    assert sorted(os.listdir(tmp_path)) == ["export.kept_1", "export.kept_2"]
    assert os.listdir(tmp_path / "export.kept_1") == ["mine"]
    assert os.listdir(tmp_path / "export.kept_2") == ["mine_too"]


def test_a_link_in_the_place_of_the_folder_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "export").symlink_to(tmp_path / "disk")
    with replaced_folder(tmp_path / "export", mark="new") as partial:
        (partial / "new").touch()
    assert (tmp_path / "export").is_symlink()
    assert os.listdir(tmp_path / "export") == ["new"]


def test_a_link_to_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "precious").touch()
    (tmp_path / "mine").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match="the folder is not empty, and nothing is overwritten"):
        check_new(tmp_path / "mine", outside=tmp_path / "runs")


def test_a_name_that_the_file_system_refuses_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"^--to .*a: File name too long; give another folder$"):
        check_new(tmp_path / ("a" * 300), outside=tmp_path / "runs")
