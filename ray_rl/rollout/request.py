"""A request to an engine, how its completions are drawn, and the one place where sampling seeds come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ray_rl.types import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn, and what ends them."""

    max_tokens: int
    """Limit of each completion."""
    seed: int
    """Completion g of a request is drawn with seed + g."""
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """A completion ends where the first of these texts is complete, and includes it."""
    stop_token_ids: tuple[int, ...] = ()
    """A completion ends with the first of these tokens, and includes it."""
    logprobs: bool = True
    """Whether each token comes with its log-probability; without, they are nan."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """G completions of one prompt."""

    id: str
    """Unique in the run."""
    token_ids: tuple[int, ...]
    samples: int
    """G."""
    sampling: Sampling

    @property
    def most_tokens(self) -> int:
        """The tokens that it may cost: of the prompt, and of all completions at full length."""
        return self.samples * self.sampling.max_tokens + len(self.token_ids)


def sampling_seed(*, run_seed: int, step: int, index: int, prompt_id: str, sample: int = 0, turn: int = 0) -> int:
    """Seed of one turn of one rollout in [0, 2^31): a hash, so that no two requests of a run share a stream.

    The first turns of a group are one request, and their seeds follow one another (see `Sampling.seed`).

    Args:
        run_seed: `run.seed`.
        step: the step that the rollouts are for.
        index: of the prompt in the step, as one prompt may come twice where two epochs meet.
        prompt_id: of the prompt.
        sample: number of the rollout in its group, from 0.
        turn: number of the turn in the rollout, from 0.
    """
    prompt = f"{run_seed}/{step}/{index}/{prompt_id}"
    return _hashed(prompt) + sample if turn == 0 else _hashed(f"{prompt}/{sample}/{turn}")


def continuation(request: SampleRequest, *, sample: int, cut: int, sampled: Sequence[int]) -> SampleRequest:
    """The request for the rest of one completion of `request`, after what was sampled of it.

    Its seed is a hash of the completion's own and of the cut: a stream of random numbers cannot be resumed in the
    middle, and from its start it would repeat the choices that led here.

    Args:
        request: the request that was cut short.
        sample: number of the completion in it.
        cut: how often this completion has been cut short.
        sampled: its tokens so far.
    """
    sampling = replace(
        request.sampling,
        seed=_hashed(f"{request.sampling.seed + sample}/{cut}"),
        max_tokens=request.sampling.max_tokens - len(sampled),
    )
    return SampleRequest(f"{request.id}/{sample}/{cut}", (*request.token_ids, *sampled), 1, sampling)


def joined(part: Completion, rest: Completion) -> Completion:
    """Two parts of one completion as one, which ends as the second does. The text of both is decoded together."""
    return Completion(
        token_ids=np.concatenate([part.token_ids, rest.token_ids]),
        logprobs=np.concatenate([part.logprobs, rest.logprobs]),
        versions=np.concatenate([part.versions, rest.versions]),
        finish_reason=rest.finish_reason,
        text="",
    )


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1
