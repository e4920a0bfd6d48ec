"""Ends completions at the texts of `rollout.stop`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from ray_rl.types import Completion


def ended_by_text(text: str, stops: Sequence[str]) -> str:
    """Returns the text up to and with the stop text that is complete first, as vLLM does; without any, all of it."""
    end = _end(text, stops)
    return text if end is None else text[:end]


def up_to_a_stop(completion: Completion, stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Completion:
    """Returns the tokens up to the first complete stop text, with finish reason "stop"; without any, all tokens.

    Args:
        completion: the completion; its text is not used.
        stops: texts that end a completion.
        decode: turns tokens into text.
    """
    token_ids = completion.token_ids.tolist()
    if not stops or _end(decode(token_ids), stops) is None:
        return completion
    # Text only grows with more tokens, so that a binary search finds the smallest number of tokens with a stop.
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
