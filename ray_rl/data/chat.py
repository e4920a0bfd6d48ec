"""Text to tokens and back: the model's tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.errors import DataError
from ray_rl.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template.

    Prompts become tokens once, here. A completion starts where its prompt's tokens end: by position, whatever the
    tokens are. Text is decoded for rewards and people only, and never tokenised again.
    """

    def __init__(self, folder: str | Path, *, trust_remote_code: bool = False) -> None:
        """Loads the tokenizer.

        Args:
            folder: with the tokenizer's files, or the name of a model of the hub.
            trust_remote_code: let a tokenizer without tokenizer.json bring its own code.

        Raises:
            DataError: there is no tokenizer.
        """
        self._folder = folder
        try:
            self._tokenizer = _load(folder, trust_remote_code)
        except (OSError, ValueError) as error:
            raise DataError(
                f"model.path={folder}: no tokenizer could be loaded: {error}; "
                "name a folder with tokenizer.json, or a model of the hub"
            ) from error
        self._eos_token_ids = _eos_token_ids(Path(folder), self._tokenizer.eos_token_id)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: the tokenizer's, then those of generation_config.json."""
        return self._eos_token_ids

    def encode(self, prompt: str | Sequence[Message], *, chat: bool) -> tuple[int, ...]:
        """Tokens of a prompt.

        Args:
            prompt: text, or a conversation.
            chat: apply the chat template, generation prompt included; text is then one user message. Without, text is
                tokenised as it is, with the special tokens that the tokenizer adds by itself (often one at the start).

        Raises:
            DataError: the model has no chat template or its template refuses, or a conversation comes with chat False.
        """
        if not chat:
            if not isinstance(prompt, str):
                raise DataError("data.chat=false feeds text, but the prompt is a list of messages; set data.chat: true")
            return tuple(self._tokenizer(prompt)["input_ids"])
        if self._tokenizer.chat_template is None:
            raise DataError(
                f"model.path={self._folder}: the tokenizer has no chat template; "
                "use an instruct model, or a text source with data.chat: false"
            )
        return self._through_template([Message("user", prompt)] if isinstance(prompt, str) else prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        text = self._tokenizer.decode([int(token) for token in token_ids], skip_special_tokens=True)
        assert isinstance(text, str), "one sequence decodes to one text"
        return text

    def _through_template(self, messages: Sequence[Message]) -> tuple[int, ...]:
        import jinja2

        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            token_ids = self._tokenizer.apply_chat_template(
                conversation, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"the chat template of {self._folder} refuses roles {roles}: {error}; correct the messages"
            ) from error
        return tuple(token_ids)


def _load(folder: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase
    # transformers' root takes 1.4 s to import; AutoTokenizer 6.5 s, because it pulls torch in.
    if (Path(folder) / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return tokenizer


def _eos_token_ids(folder: Path, of_tokenizer: int | None) -> tuple[int, ...]:
    token_ids = [] if of_tokenizer is None else [of_tokenizer]
    file = folder / "generation_config.json"
    if file.is_file():
        declared = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        token_ids += declared if isinstance(declared, list) else [] if declared is None else [declared]
    return tuple(dict.fromkeys(token_ids))
