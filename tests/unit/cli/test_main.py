import argparse
from pathlib import Path

import pytest

from ray_rl import __version__
from ray_rl.cli import main as cli
from ray_rl.cli.main import main
from ray_rl.errors import ClusterError, ConfigError

CONFIG = Path(__file__).parents[3] / "configs" / "grpo_addition_smollm2-135m_cpu.yaml"
NOT_FULL = "  not checked: tokenizer, models and installed packages; add --full"


@pytest.fixture
def command_that(monkeypatch):
    """Makes `ray-rl validate` run a function instead."""

    def replace(function):
        parser = argparse.ArgumentParser()
        parser.set_defaults(command=function)
        monkeypatch.setattr(cli, "_parser", lambda: parser)

    return replace


def raises(error):
    def command(arguments):
        raise error

    return command


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"ray-rl {__version__}\n")


def test_a_misspelt_command_gets_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["trian", str(CONFIG)])
    assert stop.value.code == 2
    assert "trian: no such command; did you mean train? The commands are train, resume" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "validate", "plan", "resume", "status", "stop", "logs"])
def test_a_command_alone_names_what_it_needs_and_not_what_it_may_have(command, capsys):
    needed = "RUN" if command in ("resume", "status", "stop", "logs") else "CONFIG"
    with pytest.raises(SystemExit) as stop:
        main([command])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: the following arguments are required: {needed}\n")


def test_no_command_at_all_prints_the_help_and_ends_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "examples:\n  ray-rl doctor" in said and "exit codes: 0 done" in said


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--steps", "5"], "instead of --steps write run.steps=5"),
        (["--run.steps", "5"], "instead of --run.steps write run.steps=5"),
        (["--run.steps=5"], "instead of --run.steps write run.steps=5"),
        (["--lr", "1e-5"], "instead of --lr write train.learning_rate=1e-5"),
        (["--num-generations=4"], "instead of --num-generations write algorithm.group_size=4"),
        (["--learning_rate", "1"], "write train.learning_rate=1 or critic.learning_rate=1"),
        (["--use_wandb"], "--use_wandb: there is no upload: metrics.jsonl and TensorBoard files are in the run folder"),
        (["--system_prompt", "two words"], "instead of --system_prompt write 'data.system_prompt=two words'"),
        (["--resum", "auto"], "did you mean --resume?"),
        (["--qqq"], "values are set without dashes, as key=value: run.steps=5"),
    ],
)
def test_an_option_that_is_a_key_gets_it_as_it_is_written_here(words, advice, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(CONFIG), *words])
    assert stop.value.code == 2
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["kill", "runs/a"], "kill: no such command; did you mean stop? The commands are train"),
        (["list"], "list: no such command; did you mean runs?"),
        (["help"], "help: no such command; did you mean --help?"),
        (["resume", "runs/a", "--steps", "60"], "instead of --steps write run.steps=60"),
        (["resume", "runs/a", "--stp", "60"], "did you mean --step?"),
        (["train", "a.yaml", "--resume", "runs/a b"], "to continue a run folder: ray-rl resume 'runs/a b'"),
    ],
)
def test_words_of_other_programs_get_the_command_that_does_it_here(words, advice, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["trian"], ["train"], ["export"]])
def test_words_that_are_no_command_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: ray-rl" in capsys.readouterr().err


def test_the_users_error_is_one_message_and_2(command_that, capsys):
    command_that(raises(ConfigError("run.steps=0: must be at least 1")))
    assert main([]) == 2
    assert capsys.readouterr().err == "ray-rl: error: run.steps=0: must be at least 1\n"


def test_a_failure_is_one_message_and_1(command_that, capsys, monkeypatch):
    monkeypatch.delenv("RAY_RL_TRACEBACK", raising=False)
    command_that(raises(ClusterError("worker 3 is gone")))
    assert main([]) == 1
    assert capsys.readouterr().err == "ray-rl: error: worker 3 is gone\n"


def test_a_failure_shows_its_traceback_on_request(command_that, capsys, monkeypatch):
    monkeypatch.setenv("RAY_RL_TRACEBACK", "1")
    command_that(raises(ClusterError("worker 3 is gone")))
    assert main([]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ray_rl.errors.ClusterError: worker 3 is gone"


def test_an_interrupt_ends_with_130(command_that, capsys):
    command_that(raises(KeyboardInterrupt()))
    assert main([]) == 130
    assert capsys.readouterr().err == "ray-rl: interrupted\n"


def test_what_the_command_returns_is_what_main_returns(command_that):
    command_that(lambda arguments: 1)
    assert main([]) == 1


class TestValidate:
    def test_a_valid_configuration_is_summed_up(self, capsys):
        assert main(["validate", str(CONFIG), "run.steps=3", "algorithm.minibatches=2"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{CONFIG}: valid",
            "  3 steps of 8 prompts x 8 completions, 6 optimizer steps",
            "  on CPU: actor 1, engines 1",
            NOT_FULL,
        ]

    def test_gpus_may_be_elsewhere(self, capsys, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert main(["validate", str(CONFIG), "cluster.accelerator=gpu", "train.workers=4"]) == 0
        assert capsys.readouterr().out.splitlines()[2:] == [
            "  on 5 GPUs: actor 4 (train.workers), engines 1 (rollout.engines 1 * rollout.tensor_parallel 1)",
            "  note: this machine has 0 GPUs; train where they are, or set cluster.address",
            NOT_FULL,
        ]

    def test_a_wrong_configuration_ends_with_2(self, capsys):
        assert main(["validate", str(CONFIG), "algorithm.group_size=1"]) == 2
        assert capsys.readouterr().err.startswith("ray-rl: error: algorithm.group_size=1: ")


@pytest.mark.parametrize("traceback", ["0", "1"])
def test_the_value_of_a_variable_that_is_a_secret_is_not_repeated(command_that, monkeypatch, capsys, traceback):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("RAY_RL_TRACEBACK", traceback)
    command_that(raises(ClusterError("401 for https://me:pw@hub.example with hf_very_secret")))
    assert main([]) == 1
    shown = capsys.readouterr().err
    assert "401 for https://***@hub.example with ***" in shown
    assert "very_secret" not in shown


def test_overrides_may_stand_behind_options(capsys):
    words = [str(CONFIG), "run.seed=1", "--nodes", "2", "run.stps=3"]
    assert main(["plan", *words]) == 2
    assert "override 'run.stps=3': unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["plan", str(CONFIG), "--nods", "2"], ["export", "runs/first", "--to", "there", "run.seed=1"]]
)
def test_an_option_that_is_none_and_a_word_too_much_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "ray-rl: error: unrecognized arguments: " in capsys.readouterr().err
