"""What is asked of an engine, whole or in parts, and the one place where sampling seeds come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_rl.types import Completion


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """G completions of one prompt."""

    id: str
    """Unique in the run."""
    token_ids: tuple[int, ...]
    samples: int
    """G."""
    seed: int
    """Completion g is drawn with seed + g."""
    max_tokens: int | None = None
    """Of each completion; None: `rollout.max_tokens`."""


def request_seed(*, run_seed: int, step: int, index: int, prompt_id: str) -> int:
    """Seed of a prompt's completions in [0, 2^31): a hash, so that no two requests of a run share a stream.

    Args:
        run_seed: `run.seed`.
        step: that the completions are for.
        index: of the prompt in the step, as one prompt may come twice where two epochs meet.
        prompt_id: of the prompt.
    """
    return _hashed(f"{run_seed}/{step}/{index}/{prompt_id}")


def continuation(request: SampleRequest, *, sample: int, cut: int, sampled: Sequence[int]) -> SampleRequest:
    """The request for the rest of one completion of `request`, after what was sampled of it.

    Its seed is a hash of the completion's own and of the cut: the stream of random numbers cannot be taken up in the
    middle, and from its start it would repeat the choices that led here.

    Args:
        request: that was cut short.
        sample: number of the completion in it.
        cut: how often this completion has been cut short.
        sampled: its tokens so far.
    """
    seed = _hashed(f"{request.seed + sample}/{cut}")
    return SampleRequest(f"{request.id}/{sample}/{cut}", (*request.token_ids, *sampled), 1, seed)


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
