"""Advantages and losses of users are called before a run starts, in processes that may exit or hang."""

import pytest
import yaml

from ray_rl.cli.main import main
from ray_rl.config.algorithm import Algorithm
from ray_rl.errors import ConfigError
from ray_rl.preflight.functions import check_functions
from tests.algorithm import algorithm

MODULE = """
import os, time, torch

def advantages(scores_PG, is_scored_PG, power=1.0):
    return (scores_PG - scores_PG.mean(1, keepdim=True)).sign() * power

def raises(scores_PG, is_scored_PG):
    return scores_PG.no_such_method()

def exits(*tensors):
    os._exit(3)

def loss(logprobs_N, old_logprobs_N, advantages_N, row_N, clip):
    return -advantages_N * logprobs_N, torch.zeros_like(row_N, dtype=torch.bool)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder, which holds the module of the user."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_algorithm.py").write_text(MODULE)
    return tmp_path


def custom(name, **options):
    return {"kind": "custom", "function": f"users_algorithm:{name}", "options": options}


def test_validate_passes_right_functions_and_ends_with_code_2_for_an_option_that_is_not_taken(place, capsys):
    config = {
        "run": {"name": "first", "steps": 2},
        "model": {"path": "smollm2-135m-instruct"},
        "data": {"kind": "addition"},
        "rewards": [{"kind": "number"}],
        "algorithm": algorithm(advantage=custom("advantages", power=2.0), loss=custom("loss")),
        "cluster": {"accelerator": "cpu"},
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["validate", "run.yaml"]) == 0
    capsys.readouterr()
    assert main(["validate", "run.yaml", "algorithm.advantage.options={powr: 2.0}"]) == 2
    assert capsys.readouterr().err.startswith(
        "ray-rl: error: algorithm.advantage.function=users_algorithm:advantages: called as in training, it raised "
        "TypeError: advantages() got an unexpected keyword argument 'powr'"
    )


@pytest.mark.parametrize(
    ("section", "name", "message"),
    [
        ("advantage", "raises", r"it raised AttributeError: .*no_such_method.* at .*users_algorithm\.py:8 in raises; "),
        ("loss", "exits", "it ended its process with exit code 3"),
        ("loss", "advantages", r"it raised TypeError: advantages\(\) takes from 2 to 3 positional"),
    ],
)
def test_a_function_that_fails_names_the_key_and_its_own_file_and_line(place, section, name, message):
    with pytest.raises(ConfigError, match=rf"^algorithm\.{section}\.function=users_algorithm:{name}: .*{message}"):
        check_functions(Algorithm.model_validate({section: custom(name)}))
