"""Makes one pair of several answers that have scores."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from ray_rl.data.formats.record import Unusable

TIE = "no answer is better than another"


def best_and_lower(answers: Sequence[tuple[float, str]], *, prompt: str) -> tuple[str, str]:
    """Returns the best answer, and one with a lower score.

    The second is drawn at random, as in UltraFeedback binarized (arXiv:2310.16944), but by a hash of the prompt, so
    that it is the same in every run. One pair per prompt: with all pairs of a prompt a model overfits to its answers
    (InstructGPT, arXiv:2203.02155, section 3.5). Empty answers are left out; of two best ones, the first counts.

    Args:
        answers: (score, text) of each answer; a higher score is better.
        prompt: the text of the prompt.

    Raises:
        Unusable: fewer than two answers are left, or all have the same score.
    """
    filled = [(score, text) for score, text in answers if text.strip()]
    if len(filled) < 2:
        raise Unusable("fewer than two answers to a prompt")
    best, chosen = max(filled, key=lambda each: each[0])
    lower = [text for score, text in filled if score < best]
    if not lower:
        raise Unusable(TIE)
    drawn = int.from_bytes(blake2b(prompt.encode(), digest_size=8).digest(), "big")
    return chosen, lower[drawn % len(lower)]
