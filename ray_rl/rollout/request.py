"""A request to an engine, the settings of its sampling, and the one place that computes seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ray_rl.types import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are sampled, and what ends them."""

    max_tokens: int
    """The most tokens of each completion."""
    seed: int
    """Completion g of a request is sampled with seed + g."""
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """A completion ends when the first of these texts is complete, and includes it."""
    stop_token_ids: tuple[int, ...] = ()
    """A completion ends with the first of these tokens, and includes it."""
    logprobs: bool = True
    """Whether to return the log-probability of each token; if not, they are nan."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request for G completions of one prompt."""

    id: str
    """Unique in the run."""
    token_ids: tuple[int, ...]
    samples: int
    """G."""
    sampling: Sampling

    @property
    def most_tokens(self) -> int:
        """The most tokens that it may need: those of the prompt, and of all completions at full length."""
        return self.samples * self.sampling.max_tokens + len(self.token_ids)


def sampling_seed(*, run_seed: int, step: int, index: int, prompt_id: str, sample: int = 0, turn: int = 0) -> int:
    """Returns the seed of one turn of a rollout: a hash, so that two requests do not use the same random numbers.

    The hash is in [0, 2^31). The first turns of a group are one request, with consecutive seeds (see `Sampling.seed`).

    Args:
        run_seed: `run.seed`.
        step: the step of the rollouts.
        index: the index of the prompt in the step, because a step in which an epoch ends can have a prompt twice.
        prompt_id: the id of the prompt.
        sample: number of the rollout in its group, from 0.
        turn: number of the turn in the rollout, from 0.
    """
    prompt = f"{run_seed}/{step}/{index}/{prompt_id}"
    return _hashed(prompt) + sample if turn == 0 else _hashed(f"{prompt}/{sample}/{turn}")


def continuation(request: SampleRequest, *, sample: int, cut: int, sampled: Sequence[int]) -> SampleRequest:
    """Returns a request for the rest of one completion of `request`.

    Its seed is a hash of the completion's own seed and of the number of interruptions: a stream of random numbers
    cannot be resumed in the middle, and from its start it would repeat the choices made so far.

    Args:
        request: the request that was interrupted.
        sample: number of the completion in the request.
        cut: how often this completion has been interrupted.
        sampled: its tokens so far.
    """
    sampling = replace(
        request.sampling,
        seed=_hashed(f"{request.sampling.seed + sample}/{cut}"),
        max_tokens=request.sampling.max_tokens - len(sampled),
    )
    return SampleRequest(f"{request.id}/{sample}/{cut}", (*request.token_ids, *sampled), 1, sampling)


def joined(part: Completion, rest: Completion) -> Completion:
    """Joins two parts of a completion, with the finish reason of the second. Its text is decoded later, as a whole."""
    return Completion(
        token_ids=np.concatenate([part.token_ids, rest.token_ids]),
        logprobs=np.concatenate([part.logprobs, rest.logprobs]),
        versions=np.concatenate([part.versions, rest.versions]),
        finish_reason=rest.finish_reason,
        text="",
    )


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1
