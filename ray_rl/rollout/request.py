"""What is asked of an engine, and the one place where sampling seeds come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


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


def request_seed(*, run_seed: int, step: int, index: int, prompt_id: str) -> int:
    """Seed of a prompt's completions in [0, 2^31): a hash, so that no two requests of a run share a stream.

    Args:
        run_seed: `run.seed`.
        step: that the completions are for.
        index: of the prompt in the step, as one prompt may come twice where two epochs meet.
        prompt_id: of the prompt.
    """
    digest = hashlib.blake2b(f"{run_seed}/{step}/{index}/{prompt_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
