import errno
import os

import pytest

from ray_rl.cli.main import main

OLD = """\
# what it is for
model: {path: smollm2-135m-instruct}
algorithm:  # the one of the paper
  preset: dapo
"""
NEW = OLD.replace("preset", "kind")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "run.yaml").write_text(OLD)
    (tmp_path / "run.yaml").chmod(0o640)
    return tmp_path / "run.yaml"


def test_a_file_is_rewritten_in_place_and_what_changes_is_shown(file, capsys):
    assert main(["migrate", str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["-  preset: dapo", "+  kind: dapo"]
    assert file.read_text() == NEW
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["run.yaml"]
    assert main(["migrate", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: nothing to change\n"


def test_comments_of_a_removed_section_stay_where_it_was(file, capsys):
    file.write_text(OLD.replace("preset", "kind") + "reward:  # judges\n  # ours\n  paths: [a]  # small\nrollout: {}\n")
    assert main(["migrate", str(file)]) == 0
    assert file.read_text().endswith("# judges\n# ours\n# small\nrollout: {}\nrewards: [{kind: model, paths: [a]}]\n")


def test_what_is_shown_has_no_secrets(file, capsys):
    secrets = "password: |\n  first line\n  second line\napi_key: swordfish\n"
    file.write_text(secrets + "reward: {paths: ['https://me:pw@host/a'], headers: {X: quick-fox}}\n")
    assert main(["migrate", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "+rewards: [{kind: model" in shown and " api_key: ***" in shown and "   ***" in shown
    assert not any(word in shown for word in ("swordfish", "first line", "second line", "me:pw", "quick-fox"))
    assert "swordfish" in file.read_text() and "quick-fox" in file.read_text()


def test_another_file_is_not_overwritten_and_nobody_else_can_read_the_new_one_while_it_is_written(file, monkeypatch):
    (file.parent / "run.yaml.partial").write_text("mine")
    modes = []
    fsync = os.fsync

    def observed(descriptor):
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", observed)
    old = os.umask(0)
    try:
        assert main(["migrate", str(file)]) == 0
    finally:
        os.umask(old)
    assert modes == [0o600]
    assert file.stat().st_mode & 0o777 == 0o640
    assert (file.parent / "run.yaml.partial").read_text() == "mine"
    assert sorted(path.name for path in file.parent.iterdir()) == ["run.yaml", "run.yaml.partial"]


def test_a_link_stays_and_the_file_that_it_names_is_rewritten(file):
    link = file.with_name("link.yaml")
    link.symlink_to(file.name)
    assert main(["migrate", str(link)]) == 0
    assert link.is_symlink() and "preset" not in file.read_text()


def test_a_disk_that_is_full_leaves_the_file_as_it_was(file, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["migrate", str(file)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert file.read_text() == OLD
    assert [path.name for path in file.parent.iterdir()] == ["run.yaml"]


def test_a_dry_run_changes_nothing(file, capsys):
    assert main(["migrate", "--dry-run", str(file)]) == 0
    assert "+  kind: dapo" in capsys.readouterr().out
    assert file.read_text() == OLD


def test_lines_that_end_as_on_windows_stay_so(file):
    file.write_bytes(OLD.replace("\n", "\r\n").encode())
    assert main(["migrate", str(file)]) == 0
    assert file.read_bytes() == NEW.replace("\n", "\r\n").encode()


def test_a_kind_that_meant_other_numbers_is_noted_and_they_are_written_out_on_demand(file, capsys):
    file.write_text("algorithm: {kind: grpo, kl: {coefficient: 0.1}}\n")
    assert main(["migrate", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: nothing to change\nnote: {file}:1: algorithm.kind=grpo without these keys meant ")
    assert main(["migrate", "--from", "0.1", str(file)]) == 0
    assert file.read_text() == "algorithm: {kind: grpo, kl: {coefficient: 0.1}, reduction: token_mean}\n"


def test_a_file_that_is_none_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    assert main(["migrate", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"ray-rl: error: {tmp_path / 'none.yaml'}: no such file")
