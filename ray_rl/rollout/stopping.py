"""Where the texts of `rollout.stop` end a completion."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from ray_rl.types import Completion


def ended_by_text(text: str, stops: Sequence[str]) -> str:
    """The text up to the end of the stop that is complete first, as vLLM cuts it; the whole text without a stop."""
    end = _end(text, stops)
    return text if end is None else text[:end]


def up_to_a_stop(completion: Completion, stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Completion:
    """The completion up to the token that completes a stop, which is then why it ended; itself without a stop.

    Args:
        completion: its text is not looked at.
        stops: texts that end a completion.
        decode: tokens to text.
    """
    token_ids = completion.token_ids.tolist()
    if not stops or _end(decode(token_ids), stops) is None:
        return completion
    # More tokens never have less text, so that the first number of tokens with a stop can be searched by halves.
    count = bisect_left(
        range(len(token_ids)), True, key=lambda count: _end(decode(token_ids[:count]), stops) is not None
    )
    return Completion(
        token_ids=completion.token_ids[:count],
        logprobs=completion.logprobs[:count],
        versions=completion.versions[:count],
        finish_reason="stop",
        text=completion.text,
    )


def _end(text: str, stops: Sequence[str]) -> int | None:
    return min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
