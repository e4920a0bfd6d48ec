"""Scores with the verifiers of `reasoning_gym`. Some execute text of the policy: use only in a worker process."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.utils import extract_answer


def reasoning_gym_score(
    completions: Sequence[str], *, entry: Sequence[Mapping[str, Any]], task: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    """Returns scores in [0, 1], from the verifier of the task that made the prompt.

    The answer is the content of the last <answer>...</answer>, or else the whole completion, stripped.

    Args:
        completions: decoded text.
        entry: the entries as the task made them: some verifiers distinguish tuples from lists.
        task: name and options of the task.
    """
    scores: list[float | None] = []
    for text, made, of in zip(completions, entry, task, strict=True):
        answer = extract_answer(text)
        verifier = _verifier(of["name"], json.dumps(of["options"], sort_keys=True))
        scores.append(float(verifier.score_answer(text.strip() if answer is None else answer, dict(made))))
    return scores


@functools.lru_cache(maxsize=8)
def _verifier(name: str, options: str) -> ProceduralDataset:
    return reasoning_gym.create_dataset(name, size=1, seed=0, **json.loads(options))
