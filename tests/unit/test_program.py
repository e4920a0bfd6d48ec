import sys

import pytest

from ray_rl.program import program


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The program in a folder that is not on PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    path = tmp_path / "my venv" / "ray-rl"
    path.parent.mkdir()
    path.touch(mode=0o755)
    return path


@pytest.mark.parametrize("typed", ["my venv/ray-rl", "./my venv/ray-rl", "{}"])
def test_a_program_that_path_does_not_find_is_called_as_it_was_typed(script, monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", [typed.format(script), "train"])
    assert program() == f"'{typed.format(script)}'"


def test_a_program_that_path_finds_needs_no_folder(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script), "train"])
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "ray-rl"


def test_path_may_find_another_installation(script, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray-rl").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "argv", ["my venv/ray-rl", "train"])
    assert program() == "'my venv/ray-rl'"


@pytest.mark.parametrize("typed", ["", "-c", "/nowhere/ray-rl", "/usr/bin/pytest"])
def test_a_process_that_was_started_in_another_way_names_the_program(script, monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", [typed])
    assert program() == "ray-rl"
