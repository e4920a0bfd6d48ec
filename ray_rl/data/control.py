"""Keeps the text of control tokens inside a message text, so that who writes a message cannot write turns."""

from __future__ import annotations

import re

from ray_rl.data.ends import Ends
from ray_rl.data.tokenizer import ModelTokenizer


class ControlTexts:
    """The texts that a tokenizer reads as control tokens, wherever they are.

    These are its special tokens, and of its other added tokens those that end a completion or that the chat template
    writes, such as `<tool_call>`. Words, spaces and single characters are no control tokens: they are ordinary text.
    """

    def __init__(self, tokenizer: ModelTokenizer, template: str, ends: Ends) -> None:
        """Makes the list of a model's control texts.

        Args:
            tokenizer: the tokenizer of the model.
            template: the text of its chat template.
            ends: the ends of a completion.
        """
        self._tokenizer = tokenizer
        controls = {
            text: token
            for text, token in tokenizer.added.items()
            if len(text.strip()) > 1
            and (
                token in tokenizer.special_ids
                or ((token in ends.token_ids or text in template) and not text.strip().isalnum())
            )
        }
        self.token_ids = frozenset(controls.values())
        longest_first = sorted((text.strip() for text in controls), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def broken(self, text: str, mark: str) -> str:
        """Returns the text with a mark behind the first character of each control text; see `encode`.

        Args:
            text: the text of a message.
            mark: letters and digits that the text does not contain.
        """
        broken = self._pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        # Normalization can make a control text of characters that look like it.
        if any(self._pattern.search(self._tokenizer.normalized(piece)) for piece in broken.split(mark)):
            broken = mark.join(text)
        return broken

    def encode(self, text: str, mark: str) -> list[int]:
        """Returns the tokens of a text whose marks are left out: a token never contains text on both sides of a mark.

        Raises:
            DataError: the tokenizer cannot read the text.
        """
        return [token for piece in text.split(mark) for token in self._tokenizer.encode(piece, special=False)]
