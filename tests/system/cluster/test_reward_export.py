"""An exported reward model in vLLM. transformers and the judge of a run: test_classifier_settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ray_rl.checkpoint.hugging_face import export_models
from ray_rl.models.classifier import load_classifier
from tests.tiny_model import WORDS, write_tiny_model

ROOT = Path(__file__).parents[3]
END = WORDS.index("<|end|>")
SEQUENCES = [[2, 5, 6, 7, END], [2, 9, 8, END], [2, 20, 21, 22, 23, 3, 9, END]]


def test_vllm_gives_the_scores_of_the_exported_reward_model(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source")
    model = load_classifier(str(source), "end", head_seed=3, dtype="float32", attention="sdpa", trust_remote_code=False)
    with torch.no_grad():
        model.score.weight.mul_(20)  # large enough for scores to differ
        expected = [
            float(model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1] @ model.score.weight[0])
            for tokens in SEQUENCES
        ]
    weights = ((name, weight.detach()) for name, weight in model.named_parameters())
    export_models({"": model}, weights, source=str(source), to=tmp_path / "export", step=1)
    run = subprocess.run(
        [sys.executable, "-m", "tests.system.cluster.vllm_scores", str(tmp_path / "export"), json.dumps(SEQUENCES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    printed = [line for line in run.stdout.splitlines() if line.startswith("SCORES")]
    assert printed, run.stderr[-3000:]
    assert json.loads(printed[0].removeprefix("SCORES")) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1
