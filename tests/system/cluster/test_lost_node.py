"""A node that is gone takes its trainer with it: the run goes on where there is room, and nothing is lost."""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from tests.algorithm import algorithm
from tests.driver_log import said
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[3]
STEPS, PROMPTS, GROUP = 40, 3, 4
LIMIT_S = 600


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("lost-node")
    write_tiny_model(place / "model")
    config = {
        "run": {"name": "lost-node", "steps": STEPS},
        "model": {"path": "./model", "dtype": "float32"},
        "data": {"kind": "addition", "maximum": 12, "size": STEPS * PROMPTS, "max_prompt_tokens": 32},
        "rewards": [{"kind": "length", "target": 2}],
        "algorithm": algorithm(prompts_per_step=PROMPTS, group_size=GROUP),
        "rollout": {"max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        "train": {"learning_rate": 1e-3},
        "cluster": {"accelerator": "cpu"},
        "checkpoint": {"every_steps": 2, "export": False},
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    return place


@pytest.fixture(scope="module")
def ended(place):
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.cluster.lost_node", str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    output = (place / "output").read_text() if (place / "output").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + output
    return json.loads(done.stdout.splitlines()[-1])


def test_the_trainer_goes_on_at_another_node(ended, place):
    assert ended["code"] == 0, (place / "output").read_text()
    assert len(ended["before"]) == len(ended["after"]) == 1
    assert ended["before"] != ended["after"]


def test_every_prompt_of_the_epoch_is_trained_on_once(ended, place):
    files = sorted((place / "runs" / "lost-node" / "rollouts").iterdir())
    seen = [json.loads(line)["prompt_id"] for file in files for line in file.read_text().splitlines()]
    assert len(files) == STEPS
    assert {seen.count(prompt) for prompt in seen} == {GROUP}
    assert len(set(seen)) == STEPS * PROMPTS


def test_it_says_what_happened(ended, place):
    log = place / "runs" / "lost-node" / "logs" / "driver.log"
    assert re.search(rf"Going back to step [1-9]\d* of {STEPS}; restart 1 of 3", log.read_text())
    for text in ("Going back", "restarted; training continues"):
        said(log, text, since=datetime.fromisoformat(ended["killed_at"]), fault="a node with a trainer killed")
