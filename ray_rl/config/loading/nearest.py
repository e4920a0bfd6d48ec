"""Finds the word that a user may have meant."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


def nearest(word: str, words: Collection[str], *, similarity: float = 0.6) -> str | None:
    """Returns the most similar of some words; None if no word is similar.

    A word with the same letters in another order comes first: difflib finds `gpro` nearer to `gspo` than to `grpo`.

    Args:
        word: the word as it was written.
        words: the words that exist.
        similarity: the least similarity, as difflib measures it; the default is difflib's own.
    """
    letters = sorted(word)
    same = [each for each in words if sorted(each) == letters]
    return next(iter(same or get_close_matches(word, words, n=1, cutoff=similarity)), None)
