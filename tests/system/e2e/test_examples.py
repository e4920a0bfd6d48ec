"""Each example is run by the command of its README, for one step, and mostly with a model that starts fast.

The examples for Slurm and Ray jobs run in `make test-launch`: tests/launching/slurm/, tests/system/e2e/test_ray_job.py.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.custom_data.data import comparisons
from examples.custom_reward.rewards import score
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
LIMIT_S = 300
TINY = "model={path: ./model, dtype: float32}"
SMALL = [
    "run.dir=runs",
    "run.steps=1",
    "algorithm.prompts_per_step=4",
    "algorithm.group_size=8",
    "rollout={max_tokens: 16, max_sequences: 32, kv_cache_gib: 0.05}",
    "checkpoint={every_steps: null, export: false}",
]


@dataclass(frozen=True)
class Trained:
    """An example that has trained one step."""

    metrics: dict[str, float]
    samples: list[dict]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples, as in the root of a clone, with a tiny model."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples", place / "examples", ignore=shutil.ignore_patterns("judge", "__pycache__"))
    write_tiny_model(place / "model")
    return place


def command(place: Path, example: str, program: str) -> list[str]:
    """The first command of the example's README that starts a program of .venv/bin."""
    page = (place / "examples" / example / "README.md").read_text()
    line = re.search(rf"^\.venv/bin/({program} .*)$", page, re.MULTILINE)
    assert line is not None, f"no command of {program}"
    name, *words = shlex.split(line[1])
    return [str(BIN / name), *words]


def run(place: Path, words: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    done = subprocess.run(
        words, cwd=place, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def train(place: Path, example: str, *overrides: str) -> Trained:
    """Runs the command of the README with smaller numbers."""
    run(place, [*command(place, example, "ray-rl"), f"run.name={example}", *SMALL, *overrides])
    folder = place / "runs" / example
    (record,) = (folder / "metrics.jsonl").read_text().splitlines()
    samples = (folder / "rollouts" / "step_000001.jsonl").read_text().splitlines()
    return Trained(json.loads(record), [json.loads(line) for line in samples])


def test_custom_reward_scores_with_the_function_of_its_file(place):
    trained = train(place, "custom_reward")
    given = [sample["reward_parts"]["right_equation"] for sample in trained.samples]
    assert given == [score(sample["completion"].strip(), sample["columns"]["answer"]) for sample in trained.samples]
    assert set(given) > {0.0}, "a random model would write no equation"
    assert trained.metrics["reward/mean"] == pytest.approx(sum(given) / 32)


def test_custom_environment_rewards_a_first_answer_more_than_a_second_one(place):
    trained = train(place, "custom_environment", TINY, "data.max_prompt_tokens=32", "environment.max_tokens=90")
    right = {sample["prompt_id"]: sample["columns"]["answer"] for sample in trained.samples}
    rewards = set()
    for sample in trained.samples:
        given = [turn["reward"] for turn in sample["turns"]]
        said = [re.findall(r"\d+", turn["completion"])[-1:] for turn in sample["turns"]]
        hits = [numbers and int(numbers[0]) == int(right[sample["prompt_id"]]) for numbers in said]
        assert given == [worth if hit else 0.0 for hit, worth in zip(hits, (1.0, 0.5), strict=False)]
        assert not any(hits[:-1])
        assert sample["reward"] == sum(given)
        assert ("Try again" in sample["completion"]) == (len(given) == 2)
        rewards.add(sample["reward"])
    assert rewards > {0.0}
    assert trained.metrics["reward/mean"] == pytest.approx(sum(sample["reward"] for sample in trained.samples) / 32)
    assert trained.metrics["environment/turns_mean"] == sum(len(sample["turns"]) for sample in trained.samples) / 32


@pytest.mark.long
def test_custom_data_asks_the_questions_of_its_function(place):
    trained = train(place, "custom_data", TINY)
    rows = {(row["prompt"], row["answer"]) for row in comparisons(1000, 99)}
    asked = {(sample["prompt"], sample["columns"]["answer"]) for sample in trained.samples}
    assert len(asked) == 4
    assert asked <= rows


@pytest.mark.long
def test_ppo_reward_model_trains_on_the_scores_of_the_model_that_it_makes(place):
    python, script = command(place, "ppo_reward_model", "python")
    run(place, [python, script, "./model"])
    trained = train(place, "ppo_reward_model", TINY)
    scores = [sample["reward_parts"]["model"] for sample in trained.samples]
    assert len(set(scores)) > 4
    assert all(sample["reward"] == sample["reward_parts"]["model"] for sample in trained.samples)
    assert trained.metrics["reward/mean"] == pytest.approx(trained.metrics["reward/model_mean"])
    assert "critic/explained_variance" in trained.metrics


@pytest.mark.long
def test_new_algorithm_trains_with_the_advantage_and_the_loss_of_its_file(place):
    trained = train(
        place,
        "new_algorithm",
        TINY,
        "rewards=[{kind: regex, pattern: '[0-4]'}]",
        "algorithm.loss.options={largest: 0}",
        "rollout.max_tokens=2",
        "train={learning_rate: 1.0e-3}",
    )
    groups = defaultdict(list)
    for sample in trained.samples:
        groups[sample["prompt_id"]].append(sample)
    assert [len(group) for group in groups.values()] == [8] * 4
    for group in groups.values():
        mean = sum(sample["reward"] for sample in group) / 8
        expected = [(sample["reward"] - mean) / max(mean, 1e-6) for sample in group]
        assert [sample["advantage"] for sample in group] == pytest.approx(expected, abs=1e-5)
    assert len({sample["advantage"] for sample in trained.samples}) > 2
    # Every ratio exceeds the option largest=0, so that the loss counts all tokens of bad completions. A loss of one's
    # own is given all completions, those with the advantage 0 too.
    bad = sum(sample["length"] for sample in trained.samples if sample["advantage"] < 0)
    updated = sum(sample["length"] for sample in trained.samples)
    assert trained.metrics["policy/clip_fraction"] == pytest.approx(bad / updated)
