"""What trainer and engines say of given completions: whether they have the same weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_rl.types import TrainBatch
from tests import make

FLOAT32_GAP = 1e-4
"""Two implementations of one float32 model differ by rounding alone."""


def batch_of(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> TrainBatch:
    """Answers to one prompt, as a batch without advantages. At least two, so that each of two ranks has one."""
    lengths = [len(answer) for answer in answers]
    tokens_RT = np.zeros((len(answers), max(lengths)), np.int32)
    for row, answer in enumerate(answers):
        tokens_RT[row, : len(answer)] = answer
    return make.batch(tokens_RT.shape, lengths=lengths, prompts=[prompt], tokens_RT=tokens_RT)


async def trainer_scores(actor: Any, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
    """float32 [T] of an answer."""
    first, second = await actor.logprobs(batch_of(prompt, [answer, answer]))
    assert gap(first, second) < FLOAT32_GAP
    return first


async def engine_scores(engine: Any, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
    """float32 [T] of an answer; `engine.score` returns those of prompt and answer but for the first token."""
    scores = await engine.score([*prompt, *answer])
    return np.array(scores[len(prompt) - 1 :], np.float32)


def gap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest difference."""
    return float(np.abs(one - other).max())
