import pytest

from ray_rl.cli.main import main
from ray_rl.cli.resume import in_folder
from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.errors import UserError
from ray_rl.metrics.folder_lock import locked

CONFIG = """\
run: {name: test, dir: somewhere, steps: 10}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: grpo, reduction: token_mean, kl: {coefficient: 0}}
cluster: {accelerator: cpu}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    folder = tmp_path / "moved" / "here"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(load_config(tmp_path / "run.yaml")))
    return folder


def test_a_run_goes_on_in_the_folder_that_is_given_wherever_it_was(folder):
    config = in_folder(folder, ["run.steps=12"])
    assert (config.run.dir, config.run.name, config.run.steps) == (str(folder.parent), "here", 12)


def test_a_folder_that_is_not_of_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder, it has no config.yaml"):
        in_folder(tmp_path, [])


def test_a_run_without_a_checkpoint_is_not_started_anew(folder, capsys):
    assert main(["resume", str(folder)]) == 2
    assert "no complete checkpoint to resume from; `ray-rl train " in capsys.readouterr().err


def test_a_step_without_a_checkpoint_is_named(folder, capsys):
    assert main(["resume", str(folder), "--step", "7"]) == 2
    assert "--step 7: " in capsys.readouterr().err


def test_a_folder_that_another_process_has_may_be_tried_again(folder, capsys):
    """Exit code 2 would tell a scheduler never to try again."""
    with locked(folder):
        assert main(["resume", str(folder)]) == 1
    assert "another process (pid " in capsys.readouterr().err


def test_a_run_whose_configuration_an_older_version_moved_away_can_be_resumed(folder):
    (folder / "config.yaml").rename(folder / "config.until_step_4.yaml")
    assert in_folder(folder, []).run.steps == 10


def test_a_run_of_an_older_version_is_resumed_once_its_configuration_is_migrated(folder, capsys):
    """Its `config.yaml` has every setting written out, and a preset among them."""
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("  kind: grpo\n", "  kind: grpo\n  preset: null\n"))
    assert main(["resume", str(folder)]) == 2
    assert f"remove algorithm.preset, or rewrite the file with `ray-rl migrate {file}`" in capsys.readouterr().err
    assert main(["migrate", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-6:].count("-  preset: null") == 1
    assert in_folder(folder, ["run.name=test", "run.dir=somewhere"]).algorithm.reduction == "token_mean"
