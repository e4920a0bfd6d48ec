"""Runs of `ray-rl train`, the pairs that they hold out, and what the models that they export make of these pairs.

Models are measured with transformers alone, on the tokens of the run, one sequence at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from ray_rl.app.examples import load
from ray_rl.config.loading.load import load_config
from ray_rl.models.packaged import resolve_model
from ray_rl.types import Answer, Example

disable_progress_bar()
torch.set_num_threads(1)  # a second thread waits more than it helps with sequences this short
ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
SEEDS = range(int(os.environ.get("SEEDS", "3")))
LIMIT_S = 1800


def trained(what: str, recipe: str, folder: Path, *overrides: str) -> dict[str, float]:
    """The metrics of the last step of a recipe of `configs/`, whose model is then in `folder/run/export`.

    Args:
        what: the run, for the line that says that it ended.
        recipe: the name of the recipe.
        folder: the folder for the run folder.
        overrides: settings that differ from the recipe.
    """
    start_s = time.monotonic()
    command = [str(Path(sys.executable).with_name("ray-rl")), "train", f"configs/{recipe}.yaml", f"run.dir={folder}"]
    command += ["run.name=run", "run.evaluate_every=null", "checkpoint.every_steps=null", *overrides]
    done = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    metrics = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    print(f"{what}: {time.monotonic() - start_s:.0f} s, eval/accuracy {metrics['eval/accuracy']:.3f}", flush=True)
    return metrics


def held_out(recipe: str, *overrides: str) -> Sequence[Example]:
    """The pairs that a run with these settings does not train on."""
    config = load_config(ROOT / "configs" / f"{recipe}.yaml", overrides)
    return load(config, folder=resolve_model(config.model.path), say=lambda line: None).held_out


@dataclass(frozen=True)
class Likelihoods:
    """Log-probabilities of the answers of pairs."""

    sums_JS: NDArray[np.float64]
    """[pairs, 2] sums over the tokens of the chosen and of the rejected answer."""
    tokens_JS: NDArray[np.int64]

    @property
    def prefers_chosen_J(self) -> NDArray[np.bool_]:
        """Whether the mean log-probability of a token is higher in the chosen answer."""
        chosen_J, rejected_J = (self.sums_JS / self.tokens_JS).T
        return chosen_J > rejected_J


def likelihoods(folder: Path | str, pairs: Sequence[Example]) -> Likelihoods:
    """The log-probabilities that a language model gives to the answers, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprob(prompt: Sequence[int], answer: Answer) -> float:
        ids = torch.tensor([[*prompt, *answer.token_ids.tolist()]])
        logprobs_TV = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        logprobs_T = logprobs_TV.gather(1, ids[0, len(prompt) :, None])[:, 0]
        return float(logprobs_T[torch.from_numpy(answer.loss_mask)].double().sum())

    with torch.inference_mode():
        sums = [[logprob(pair.prompt_ids, answer) for answer in pair.answers] for pair in pairs]
    tokens = [[int(answer.loss_mask.sum()) for answer in pair.answers] for pair in pairs]
    return Likelihoods(np.array(sums), np.array(tokens))


def score_margins(folder: Path | str, pairs: Sequence[Example]) -> NDArray[np.float64]:
    """[pairs] how much higher a reward model scores the chosen answers, in float32."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def score(prompt: Sequence[int], answer: Answer) -> float:
        return float(model(torch.tensor([[*prompt, *answer.token_ids.tolist()]])).logits[0, 0])

    with torch.inference_mode():
        scores = [[score(pair.prompt_ids, answer) for answer in pair.answers] for pair in pairs]
    chosen_J, rejected_J = np.array(scores).T
    return chosen_J - rejected_J
