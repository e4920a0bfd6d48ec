"""Turns conversations into what a reward model reads: through its chat template, or as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.answers import AnswerTokenizer
from ray_rl.data.template import ChatTemplate, default_template
from ray_rl.data.tokenizer import ModelTokenizer
from ray_rl.errors import DataError
from ray_rl.types import Message


class Reader(Protocol):
    """A way to read conversations."""

    def tokens(self, conversation: Sequence[Message]) -> list[int]:
        """Returns the tokens of a conversation.

        Raises:
            DataError: the conversation cannot be read in this way, or has no tokens.
        """


class ChatReader:
    """Reads conversations through the model's chat template, without a generation prompt."""

    def __init__(self, tokenizer: ModelTokenizer, *, path: str) -> None:
        """Makes the reader of a model; `path` names it in errors.

        Raises:
            DataError: there is no chat template.
        """
        # A template made up here would give scores that mean nothing.
        remedy = "save the template of its training in its folder as chat_template.jinja, or use another model"
        template = default_template(tokenizer, place=f"rewards.paths={path}", remedy=remedy)
        self._template = ChatTemplate(
            template, special_tokens=tokenizer.special_tokens, owner=f"the reward model {path}"
        )
        self._tokenizer = tokenizer
        self._path = path

    def tokens(self, conversation: Sequence[Message]) -> list[int]:
        """Returns the tokens of the rendered conversation."""
        text = self._template.render(conversation, generation_prompt=False)
        # The tokenizer adds no special tokens: the template writes the first token (BOS) if the model needs one.
        tokens = self._tokenizer.encode(text, special=False)
        if not tokens:
            raise DataError(f"the chat template of the reward model {self._path} gives no tokens; correct the template")
        return tokens


class PlainReader:
    """Reads a question and its answer as text, like the examples of a reward model with `data.chat: false`."""

    def __init__(self, tokenizer: ChatTokenizer, *, path: str) -> None:
        """Makes the reader of a model; `path` names it in errors.

        Raises:
            DataError: no token ends an answer.
        """
        self._tokenizer = tokenizer
        self._answers = AnswerTokenizer(tokenizer, chat=False)
        self._path = path

    def tokens(self, conversation: Sequence[Message]) -> list[int]:
        """Returns the tokens of the question, then of the answer and its end."""
        roles = [message.role for message in conversation]
        if roles != ["user", "assistant"]:
            raise DataError(
                f"the reward model {self._path} was trained on plain text (data.chat=false), so it reads a question "
                f"and its answer, and not the turns {', '.join(roles)}; train it with data.chat=true, or give prompts "
                "of one message without data.system_prompt"
            )
        question, answer = (message.content for message in conversation)
        before = self._tokenizer.encode(question, chat=False)
        return [*before, *self._answers.after(before, self._answers.without_end(answer)), self._answers.end]
