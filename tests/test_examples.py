"""What every folder of examples/ has. tests/system/e2e/test_examples.py runs them."""

import re

import pytest

from examples.custom_reward.rewards import score
from ray_rl.cli.main import main
from ray_rl.config.loading.load import load_config
from tests.test_architecture import ROOT

EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if (path / "README.md").is_file())
MADE = {"examples/ppo_reward_model/judge"}
"""Paths that a command of an example makes."""

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)


@each_example
def test_an_example_is_a_configuration_a_page_and_at_most_one_file_of_code(example):
    files = {path.name for path in example.iterdir() if path.is_file()}
    code = {name for name in files if name.endswith(".py")}
    assert len(code) <= 1
    assert files - code == {"run.yaml", "README.md"}
    assert load_config(example / "run.yaml").run.name


@each_example
def test_the_page_of_an_example_has_the_curve_to_expect(example):
    table = re.search(r"^\| steps (\|.*\|)\n\|[-|]+\|\n\| `reward/mean` (\|.*\|)$", page(example), re.MULTILINE)
    assert table is not None
    steps, rewards = (row.strip("| ").split(" | ") for row in table.groups())
    assert len(steps) == len(rewards) >= 4
    assert all(re.fullmatch(r"-?\d\.\d\d", reward) for reward in rewards)


@each_example
def test_the_commands_of_a_page_name_files_that_exist(example):
    blocks = re.findall(r"^```\w*\n(.*?)^```", page(example), re.MULTILINE | re.DOTALL)
    assert f"examples/{example.name}/run.yaml" in "".join(blocks)
    named = re.findall(r"(?:examples|configs|launch|tests)/[\w./-]+", "".join(blocks))
    assert [path for path in named if path not in MADE and not (ROOT / path).exists()] == []


def test_the_list_of_examples_is_complete():
    listed = re.findall(r"^\| \[(\w+)\]\(\1/README\.md\) \|", page(ROOT / "examples"), re.MULTILINE)
    assert sorted(listed) == [example.name for example in EXAMPLES]


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (
            ["slurm", "examples/slurm/run.yaml"],
            "exec ray-rl train examples/slurm/run.yaml cluster.address=auto --resume auto",
        ),
        (
            ["ray-job", "examples/ray_job/run.yaml", "run.dir=/shared/runs"],
            "-- ray-rl train examples/ray_job/run.yaml run.dir=/shared/runs cluster.address=auto --resume auto",
        ),
    ],
)
def test_an_example_for_a_cluster_passes_the_checks_and_prints_what_would_run(words, runs, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["submit", *words, "--dry-run"]) == 0
    assert runs in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "value"),
    [("17 + 25 = 42", 1.0), ("17 + 25 = 42.", 1.0), ("17 + 25 = 32", 0.2), ("It is 42.", 0.0), ("42", 0.0)],
)
def test_the_reward_of_the_example_is_for_equations_with_the_right_sum(text, value):
    assert score(text, "42") == value


def page(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")
