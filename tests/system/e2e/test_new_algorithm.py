"""The example of a new algorithm, run by the command of its README for one step with a model that starts fast."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
LIMIT_S = 300
SMALL = [
    "run={dir: runs, name: small, steps: 1}",
    "model={path: ./model, dtype: float32}",
    "rewards=[{kind: regex, pattern: '[0-4]'}]",
    "algorithm.prompts_per_step=4",
    "algorithm.loss.options={largest: 0}",
    "rollout={max_tokens: 2, max_sequences: 32, kv_cache_gib: 0.05}",
    "train={learning_rate: 1.0e-3}",
    "checkpoint={every_steps: null, export: false}",
]


def test_new_algorithm_trains_with_the_advantage_and_the_loss_of_its_file(tmp_path):
    shutil.copytree(ROOT / "examples" / "new_algorithm", tmp_path / "examples" / "new_algorithm")
    write_tiny_model(tmp_path / "model")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    words = [str(BIN / "ray-rl"), "train", "examples/new_algorithm/run.yaml", *SMALL]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "small"
    groups = defaultdict(list)
    for line in (folder / "rollouts" / "step_000001.jsonl").read_text().splitlines():
        sample = json.loads(line)
        groups[sample["prompt_id"]].append(sample)
    assert [len(group) for group in groups.values()] == [8] * 4
    for group in groups.values():
        mean = sum(sample["reward"] for sample in group) / 8
        expected = [(sample["reward"] - mean) / max(mean, 1e-6) for sample in group]
        assert [sample["advantage"] for sample in group] == pytest.approx(expected, abs=1e-5)
    samples = [sample for group in groups.values() for sample in group]
    assert len({sample["advantage"] for sample in samples}) > 2
    # Every ratio exceeds the option largest=0, so that the loss counts all tokens of bad completions. Completions with
    # the advantage 0 are not in the update.
    bad = sum(sample["length"] for sample in samples if sample["advantage"] < 0)
    trained = sum(sample["length"] for sample in samples if sample["advantage"] != 0)
    (record,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert record["policy/clip_fraction"] == pytest.approx(bad / trained)
