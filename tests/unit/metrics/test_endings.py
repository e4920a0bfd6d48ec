import pytest
import yaml

from ray_rl.app.records import uses_of
from ray_rl.config import RunConfig
from ray_rl.errors import DataError, EngineError, Preempted
from ray_rl.metrics.endings import next_commands
from ray_rl.metrics.run_folder import RunFolder


def trained(*, export_adapter: str = "merged", **algorithm) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "test"},
            "model": {"path": "a model", "adapter": {"rank": 4}},
            "data": {"kind": "jsonl", "path": "rows.jsonl"},
            "algorithm": algorithm,
            "checkpoint": {"export_adapter": export_adapter},
        }
    )


USES = {"try it": "vllm serve the-model"}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "a run"
    root.mkdir()
    return RunFolder(root)


def test_a_run_that_is_done_says_how_to_try_copy_watch_and_continue_the_model(folder):
    folder.export.mkdir()
    root = f"'{folder.root}'"
    assert next_commands(folder, failed=None, saved=40, steps=40, uses=USES) == [
        ("model", str(folder.export)),
        ("try it", "vllm serve the-model"),
        ("copy it", f"ray-rl export {root} --to my-model"),
        ("curves", f"tensorboard --logdir '{folder.tensorboard}'"),
        ("continue", f"ray-rl resume {root} run.steps=80"),
    ]


def test_a_run_without_an_export_makes_one_from_its_checkpoint(folder):
    commands = dict(next_commands(folder, failed=None, saved=40, steps=40, uses=USES))
    assert commands["model"] == f"ray-rl export '{folder.root}' --to my-model"
    assert "continue" not in dict(next_commands(folder, failed=None, saved=None, steps=40, uses=USES))


def test_a_failure_names_the_logs_and_the_checkpoint_to_continue_from(folder):
    commands = dict(next_commands(folder, failed=EngineError("gone"), saved=20, steps=23, uses=USES))
    assert commands["logs"] == f"{folder.logs}/"
    assert commands["continue"] == f"ray-rl resume '{folder.root}'    (continues from the newest checkpoint, step 20)"


def test_a_failure_before_the_first_checkpoint_says_that_there_is_none(folder):
    commands = dict(next_commands(folder, failed=EngineError("gone"), saved=None, steps=0, uses=USES))
    assert commands["retry"] == "there is no checkpoint yet: run the same command again with --resume auto"
    assert "curves" not in commands


def test_wrong_input_is_corrected_before_the_run_is_continued(folder):
    commands = dict(next_commands(folder, failed=DataError("row 3"), saved=20, steps=20, uses=USES))
    assert "    (correct the input, then continue from the newest checkpoint, step 20)" in commands["continue"]
    commands = dict(next_commands(folder, failed=DataError("row 3"), saved=None, steps=0, uses=USES))
    assert commands["retry"].startswith("correct the input; there is no checkpoint yet: run the same command")


def test_a_run_that_was_stopped_has_nothing_in_its_logs_to_look_at(folder):
    commands = dict(next_commands(folder, failed=Preempted("stopped"), saved=7, steps=7, uses=USES))
    assert "logs" not in commands
    assert commands["continue"].startswith(f"ray-rl resume '{folder.root}'")


def test_paths_below_the_working_directory_are_short(folder, monkeypatch):
    monkeypatch.chdir(folder.root.parent)
    commands = dict(next_commands(folder, failed=Preempted("stopped"), saved=7, steps=7, uses=USES))
    assert commands["continue"].startswith("ray-rl resume 'a run'    ")
    assert commands["curves"] == "tensorboard --logdir 'a run/tensorboard'"


def test_the_settings_that_use_a_model_have_its_path_quoted(folder):
    assert uses_of(trained(kind="dpo"), folder.export)["train on it"] == f"model.path='{folder.export}'"
    (setting,) = uses_of(trained(kind="reward_model", members=2), folder.export).values()
    paths = [f"{folder.export}/member_{index}" for index in (0, 1)]
    assert yaml.safe_load(setting) == {"rewards": [{"kind": "model", "paths": paths}]}
    assert uses_of(trained(kind="process_reward_model"), folder.export) == {}


def test_adapters_are_served_with_the_model_that_they_belong_to(folder):
    assert uses_of(trained(export_adapter="peft", kind="dpo"), folder.export) == {
        "try it": f"vllm serve 'a model' --enable-lora --max-lora-rank 8 --lora-modules policy='{folder.export}'",
        "train on it": f"model.path='{folder.export}'",
    }
    assert uses_of(trained(kind="dpo"), folder.export)["try it"] == f"vllm serve '{folder.export}'"
