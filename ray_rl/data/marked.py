"""The tokens of a conversation that its chat template marks as the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_rl.data.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation with the marks of its chat template."""

    token_ids: tuple[int, ...]
    is_generated: NDArray[np.bool_]
    """One value for each token."""


def generated_tokens(tokenizer: ModelTokenizer, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Returns which tokens of a text have a character in one of the spans.

    Args:
        tokenizer: a tokenizer of the `tokenizers` library.
        text: the text.
        spans: first character and the one after the last of each span.
    """
    import numpy as np  # `ray-rl validate` needs none

    library = tokenizer.library
    assert library is not None, "a tokenizer in Python does not tell the places of tokens"
    offsets = library.encode(text, add_special_tokens=False).offsets
    is_generated = np.zeros(len(offsets), np.bool_)
    before = 0
    for place, (start, end) in enumerate(offsets):
        # Byte-level tokenizers leave out spaces at the start of a token: it begins where the one before it ends.
        start = min(start, before)
        is_generated[place] = any(start < stop and first < end for first, stop in spans)
        before = end
    return is_generated
