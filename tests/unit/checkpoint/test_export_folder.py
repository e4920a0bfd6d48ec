import json
from pathlib import Path

import pytest

from ray_rl.checkpoint.export_folder import export_run
from ray_rl.checkpoint.export_marks import exported_step
from ray_rl.cli.main import main
from ray_rl.errors import UserError


@pytest.fixture
def run(tmp_path):
    """A run folder with an export whose weights are not read."""
    export = tmp_path / "runs" / "first" / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text('{"dtype": "float32", "text_config": {"torch_dtype": "float32"}}')
    (export / "model.safetensors").write_bytes(b"weights")
    (export / "tokenizer.json").write_text("{}")
    return export.parent


def refused(run, to, dtype=None):
    with pytest.raises(UserError) as caught:
        export_run(run, to=to, dtype=dtype)
    return str(caught.value)


def test_the_export_is_copied_whole(run, tmp_path, capsys):
    to = tmp_path / "models" / "mine"
    assert main(["export", str(run), "--to", str(to)]) == 0
    assert capsys.readouterr().out == f"exported {run} to {to}\n"
    assert {file.name: file.read_bytes() for file in to.iterdir()} == {
        file.name: file.read_bytes() for file in (run / "export").iterdir()
    }
    assert [path.name for path in to.parent.iterdir()] == ["mine"]


def test_an_empty_folder_may_be_the_target(run, tmp_path):
    to = tmp_path / "mine"
    to.mkdir()
    assert sorted(file.name for file in export_run(run, to=to).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    assert main(["export", str(run), "--to", str(tmp_path / "mine")]) == 2
    assert capsys.readouterr().err == (
        f"ray-rl: error: --to {tmp_path}/mine: the folder is not empty, and nothing is overwritten; "
        "give another or remove it\n"
    )
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["precious"]


def test_a_missing_run_is_named(tmp_path):
    assert refused(tmp_path / "no", tmp_path / "mine").startswith(f"{tmp_path}/no: no such run folder; ")


def test_a_run_without_export_says_when_it_is_written(tmp_path):
    assert refused(tmp_path, tmp_path / "mine") == (
        f"{tmp_path}: the run has no export/ folder; it is written when a run ends, unless checkpoint.export=false"
    )


@pytest.mark.parametrize(
    ("file", "missing"),
    [("config.json", "config.json"), ("model.safetensors", "*.safetensors"), ("tokenizer.json", "tokenizer.json")],
)
def test_an_incomplete_export_is_refused(run, tmp_path, file, missing):
    (run / "export" / file).unlink()
    message = refused(run, tmp_path / "mine")
    assert message == f"{run}/export: incomplete, {missing} missing; the run did not finish its export"
    assert not (tmp_path / "mine").exists()


def test_the_target_is_outside_the_export(run):
    assert "is inside" in refused(run, run / "export" / "mine")


def test_a_file_is_no_target(run, tmp_path):
    (tmp_path / "mine").touch()
    assert refused(run, tmp_path / "mine") == (
        f"--to {tmp_path}/mine: is a file; give a folder that does not exist yet"
    )


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ('{"step": 12}', 12),
        ("", None),
        ("[12]", None),
        ('{"step": "12"}', None),
        ('{"step": true}', None),
        (None, None),
    ],
)
def test_an_export_says_of_which_step_it_is_or_nothing(tmp_path, content, step):
    if content is not None:
        (tmp_path / "ray_rl.json").write_text(content)
    assert exported_step(tmp_path) == step


class TestDtype:
    @pytest.fixture
    def sharded(self, run):
        """The run with two shards of real weights."""
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file

        export = run / "export"
        (export / "model.safetensors").unlink()
        save_file({"a": torch.tensor([1.0, 1.00390625])}, export / "model-00001-of-00002.safetensors")
        save_file({"b": torch.ones(2, 2), "ids": torch.arange(3)}, export / "model-00002-of-00002.safetensors")
        index = {"metadata": {"total_size": 48}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
        (export / "model.safetensors.index.json").write_text(json.dumps(index))
        return run

    def test_weights_are_rounded_and_integers_kept(self, sharded, tmp_path):
        import torch
        from safetensors.torch import load_file

        to = export_run(sharded, to=tmp_path / "mine", dtype="bfloat16")
        first = load_file(to / "model-00001-of-00002.safetensors")
        second = load_file(to / "model-00002-of-00002.safetensors")
        assert first["a"].dtype == torch.bfloat16
        assert first["a"].tolist() == [1.0, 1.0]
        assert second["ids"].dtype == torch.int64

    def test_the_json_files_say_so(self, sharded, tmp_path):
        to = export_run(sharded, to=tmp_path / "mine", dtype="bfloat16")
        assert json.loads((to / "config.json").read_text()) == {
            "dtype": "bfloat16",
            "text_config": {"torch_dtype": "bfloat16"},
        }
        index = json.loads((to / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 2 * 2 + 4 * 2 + 3 * 8
        assert index["weight_map"] == {"a": "model-00001-of-00002.safetensors"}

    def test_the_run_stays_as_it_was(self, sharded, tmp_path):
        files = sorted((sharded / "export").iterdir())
        before = [file.read_bytes() for file in files]
        export_run(sharded, to=tmp_path / "mine", dtype="bfloat16")
        assert [file.read_bytes() for file in files] == before

    def test_a_failed_conversion_leaves_nothing(self, run, tmp_path):
        from safetensors import SafetensorError

        with pytest.raises(SafetensorError):
            export_run(run, to=tmp_path / "mine", dtype="bfloat16")
        assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["runs"]


def test_a_run_that_keeps_its_best_step_gives_that_one_and_not_the_newest(run, tmp_path):
    (run / "export" / "ray_rl.json").write_text('{"step": 2}')
    newest = run / "checkpoints" / "step_4"
    newest.mkdir(parents=True)
    (newest / "manifest.json").write_text("{}")
    (newest / "evaluation.json").write_text('{"step": 2, "value": 0.5, "since": 2, "is_kept": true}')
    assert exported_step(export_run(run, to=tmp_path / "mine")) == 2
