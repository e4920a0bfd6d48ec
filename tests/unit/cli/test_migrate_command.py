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
