"""Turns prompts into tokens and tokens into text, and knows what ends a completion: tokenizer and chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.config.data import DataConfig, Mixture, Table
from ray_rl.config.rollout import RolloutConfig
from ray_rl.config.run import ModelConfig
from ray_rl.data.ends import Ends, eos_token_ids
from ray_rl.data.marked import Marked, generated_tokens
from ray_rl.data.tokenizer import ModelTokenizer, load_tokenizer, squeezed
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Message

if TYPE_CHECKING:
    from ray_rl.data.bounded_jinja import Rendered
    from ray_rl.data.template import ChatTemplate

QUESTION, ANSWER = "Qz1+1?", "Zq42qZ"
"""Unique messages of a rendered conversation: what the template writes before and after them does not contain them."""
SHOWN_CHARACTERS = 200
BEGINS_ANSWERS = (
    "<|im_start|>assistant",
    "<|start_header_id|>assistant<|end_header_id|>",
    "[/INST]",
    "<start_of_turn>model",
    "<|turn>model",
    "<|assistant|>",
    "<\uff5cAssistant\uff5c>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)
"""The last text before an answer in the chat templates of common models."""
_OPENED_THINKING = re.compile(r"\s*<think>\s*(?:</think>)?\s*$")


class ChatTokenizer:
    """A model's tokenizer with its chat template.

    Prompts are tokenised once, here. A completion starts after its prompt's tokens, by position, whatever the tokens
    are. Text is decoded only for rewards and people, and never tokenised again.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Loads the tokenizer.

        Args:
            folder: the folder with the tokenizer's files, or the name of a model of the hub.
            trust_remote_code: let a tokenizer without tokenizer.json bring its own code.
            chat_template: Jinja text, a Jinja file, or the name of one of the model's templates; None for its default.
            template_options: values for variables that the template reads.

        Raises:
            DataError: there is no tokenizer, or `chat_template` is not valid.
            ConfigError: `chat_template` is neither Jinja nor a file nor a name, or it does not read an option.
        """
        self._owner = folder
        self._tokenizer: ModelTokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self._own_template: str | None = None
        if chat_template is not None:
            from ray_rl.data.template import template_text

            self._own_template = template_text(chat_template, self._tokenizer.templates)
        self._options = template_options or {}
        self._eos_token_ids = eos_token_ids(self._tokenizer)
        # Compiled now, because otherwise an invalid template would be found by the export after the last step.
        self._changed = self.template.text if self._own_template is not None or self._options else None

    @classmethod
    def of_policy(cls, model: ModelConfig, data: DataConfig, folder: str | Path) -> ChatTokenizer:
        """Returns the tokenizer of a run's policy.

        Args:
            model: the section `model`.
            data: the section `data`.
            folder: the folder of the policy's files, or a hub name.

        Raises:
            DataError, ConfigError: as in the constructor, or there are options without a chat template.
        """
        if data.template_options and not uses_chat(data):
            raise ConfigError("data.template_options needs the chat template, but data.chat=false; remove it")
        return cls(
            folder,
            trust_remote_code=model.trust_remote_code,
            chat_template=model.chat_template,
            template_options=data.template_options,
        )

    @property
    def model_tokenizer(self) -> ModelTokenizer:
        """The tokenizer without a template."""
        return self._tokenizer

    @property
    def changed_template(self) -> str | None:
        """The chat template that an export must contain; None if it is the tokenizer's own, without options."""
        return self._changed

    @property
    def dated_template(self) -> str | None:
        """The chat template, if tokens may be others tomorrow because it writes today's date; else None."""
        return self.template.text if self.template.reads_date else None

    @cached_property
    def turn_end(self) -> int | None:
        """The token that the chat template writes after an answer, if it is a single token."""
        after = self._after_an_answer()
        token_ids = self._tokenizer.encode(after, special=False) if after else []
        added = set(self._tokenizer.added.values())
        # Space before the token belongs to the turn; a word there begins the next turn of this template only.
        spoken = [i for i in token_ids if i in added or self._tokenizer.decode([i], skip_special_tokens=False).strip()]
        return spoken[0] if spoken and spoken[0] in added else None

    @cached_property
    def answer_start(self) -> str:
        """Text that the chat template writes between the generation prompt and every answer, so that engines sample it.

        A space in some templates of Mistral, the channel in that of gpt-oss. Text that only the last answer of a
        conversation has, as the empty thought of Qwen3, is not part of it.
        """
        question, answer = Message("user", QUESTION), Message("assistant", ANSWER)
        try:
            start = self.template.render([question], generation_prompt=True)
            texts = [
                self.template.render(turns, generation_prompt=False)
                for turns in ([question, answer], [question, answer, question])
            ]
        except DataError:
            return ""
        between = {text.removeprefix(start).partition(ANSWER)[0] for text in texts}
        return between.pop() if len(between) == 1 and all(text.startswith(start) for text in texts) else ""

    @cached_property
    def prompt_end(self) -> str:
        """The text that the chat template writes after the last message of a prompt, with the generation prompt."""
        return self.template.render([Message("user", QUESTION)], generation_prompt=True).rpartition(QUESTION)[2]

    def answer_end(self, *, chat: bool) -> int:
        """Returns the token that ends an answer: that of the chat template, or else the end of a text.

        Raises:
            DataError: there is none.
        """
        end = self.turn_end if chat else None
        if end is None and self._eos_token_ids:
            end = self._eos_token_ids[0]
        if end is None:
            raise DataError(
                f"model.path={self._owner}: neither the tokenizer nor the chat template has a token that ends an "
                "answer, so that no model could learn to stop; use a tokenizer with an eos_token"
            )
        return end

    def ends(self, stop: Sequence[str], stop_token_ids: Sequence[int], *, chat: bool) -> Ends:
        """Returns the ends of a completion: the model's tokens, the template's turn end, and the configured ones.

        A text that is a single token also ends a completion as a token: decoded text has no special tokens.

        Args:
            stop: `rollout.stop`.
            stop_token_ids: `rollout.stop_token_ids`.
            chat: whether prompts went through the chat template.

        Raises:
            ConfigError: the tokenizer does not have a token, or a text contains a special token and so never appears.
        """
        token_ids = [*self._eos_token_ids, *stop_token_ids]
        if chat and self.turn_end is not None:
            token_ids.append(self.turn_end)
        known = set(self._tokenizer.vocabulary.values())
        for token in stop_token_ids:
            if token not in known:
                raise ConfigError(
                    f"rollout.stop_token_ids={token}: the tokenizer of {self._owner} has no such token; its largest is "
                    f"{max(known)}; use one of its tokens"
                )
        for text in stop:
            as_token = self._as_one_token(text)
            if as_token is None:
                self._check_can_appear(text)
            else:
                token_ids.append(as_token)
        return Ends(tuple(dict.fromkeys(token_ids)), tuple(dict.fromkeys(stop)))

    def ends_of(self, rollout: RolloutConfig, data: DataConfig) -> Ends:
        """Returns the ends of a completion of a run with these settings.

        Raises:
            ConfigError: as in `ends`.
        """
        return self.ends(rollout.stop, rollout.stop_token_ids, chat=uses_chat(data))

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        chat: bool,
        answered: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]:
        """Returns the tokens of a prompt.

        Args:
            prompt: text, or a conversation.
            chat: apply the chat template with the generation prompt; text becomes one user message. If False, text is
                tokenised as it is, after the special tokens that the tokenizer adds at the start. Special tokens at
                the end are left out, because they would end the completion before it begins.
            answered: the conversation ends with its answer, as a reward model reads it: there is no generation prompt.
            tools: JSON schemas of tools in the form of OpenAI, for a chat template that `reads_tools`.

        Raises:
            DataError: the model has no chat template, the template refuses or loses text or tools, the tokenizer loses
                text, or the prompt is a conversation or has tools and `chat` is False.
        """
        if not chat:
            if not isinstance(prompt, str):
                raise DataError("data.chat=false feeds text, but the prompt is a list of messages; set data.chat: true")
            if tools:
                raise DataError("data.chat=false feeds text, but there are tools for the prompt; set data.chat: true")
            token_ids = self._open_ended(prompt)
            self.check([prompt], token_ids)
            return tuple(token_ids)
        messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        return self._encoded(messages, answered=answered, tools=tools)[0]

    def marked(self, messages: Sequence[Message], *, answered: bool) -> Marked:
        """Returns the tokens of a conversation, as `encode` does, and which of them the chat template marks.

        Raises:
            DataError: as in `encode`, or the place of the markers is not known.
        """
        token_ids, rendered = self._encoded(messages, answered=answered)
        if rendered.generated is None:
            raise DataError(
                f"the chat template of {self._owner} has its {{% generation %}} markers inside a macro or another "
                "block that collects text, so that their place in the conversation is not known; set "
                "model.chat_template to one that writes what it marks directly, or has no markers"
            )
        return Marked(token_ids, generated_tokens(self._tokenizer, rendered.text, rendered.generated))

    @property
    def reads_tools(self) -> bool:
        """Whether the chat template writes the tools that `encode` gets."""
        return self.template.reads_tools

    @property
    def has_markers(self) -> bool:
        """Whether the chat template marks what the assistant says, and the tokenizer tells the places of tokens."""
        return self._tokenizer.library is not None and self.template.has_markers

    def _encoded(
        self, messages: Sequence[Message], *, answered: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[tuple[int, ...], Rendered]:
        self._check_not_rendered(messages[-1].content)
        rendered = self.template.rendered(messages, generation_prompt=not answered, tools=tools)
        token_ids = self._tokenizer.encode(rendered.text, special=False)
        written = squeezed(rendered.text)
        self.check([m.content for m in messages if squeezed(m.content) in written], token_ids)
        return tuple(token_ids), rendered

    def check(self, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        """Checks that tokens have all of the texts, apart from space and the tokenizer's normalization.

        Raises:
            DataError: a part of a text is lost, or a token has no embedding in the model, as an image token in a text
                model.
        """
        beyond = next((token for token in token_ids if self._rows is not None and token >= self._rows), None)
        if beyond is not None:
            text = self._tokenizer.decode([beyond], skip_special_tokens=False)
            raise DataError(
                f"the text contains the token {text!r} ({beyond}), and the model of {self._owner} has {self._rows} "
                "rows of embeddings; remove it from the text"
            )
        if self._tokenizer.library is None:
            return  # A tokenizer in Python may rewrite text in ways of its own.
        whole = _compared(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        lost = next((text for text in texts if not self._is_in(text, whole)), None)
        # The unknown token replaces words that are not in the vocabulary; such a model reads every text so.
        if lost is not None and self._tokenizer.unknown.isdisjoint(token_ids):
            raise DataError(
                f"the tokenizer of {self._owner} loses text: {lost[:SHOWN_CHARACTERS]!r} becomes "
                f"{self._tokenizer.decode(token_ids)[-SHOWN_CHARACTERS:]!r}; use text that the model can read, or "
                "another tokenizer"
            )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text without special tokens."""
        return self._tokenizer.decode(token_ids)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, with the values of its variables."""
        from ray_rl.data.template import ChatTemplate, default_template

        text = self._own_template
        if text is None:
            remedy = (
                "set model.chat_template to one of its names or to your own template, use an instruct model, or give "
                "text with data.chat: false (for files and the hub)"
            )
            text = default_template(self._tokenizer, place=f"model.path={self._owner}", remedy=remedy)
        return ChatTemplate(
            text, special_tokens=self._tokenizer.special_tokens, owner=str(self._owner), options=self._options
        )

    def _open_ended(self, text: str) -> list[int]:
        """Returns the tokens of a text with the special tokens before it, without those after it."""
        bare, whole = self._tokenizer.encode(text, special=False), self._tokenizer.encode(text, special=True)
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[: start + len(bare)]
        return whole

    def _check_not_rendered(self, content: str) -> None:
        """Refuses a text that has gone through a chat template: the model would see a conversation inside a message."""
        end = _OPENED_THINKING.sub("", content[-SHOWN_CHARACTERS:]).rstrip()
        if end.endswith(BEGINS_ANSWERS):
            raise DataError(
                f"the prompt ends with the text that a chat template writes before an answer, {end[-40:]!r}, so it has "
                "already gone through a template; give only the question, or set data.chat: false (for files and the "
                "hub)"
            )

    @cached_property
    def _rows(self) -> int | None:
        """Rows of the model's embedding, if config.json is in the folder of the tokenizer."""
        file = self._tokenizer.folder / "config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        rows = settings.get("vocab_size", (settings.get("text_config") or {}).get("vocab_size"))
        return rows if isinstance(rows, int) else None

    def _is_in(self, text: str, whole: str) -> bool:
        return _compared(text) in whole or _compared(self._tokenizer.normalized(text)) in whole

    def _after_an_answer(self) -> str | None:
        """Returns the text after an answer: up to the end, or if that is empty, up to the next turn."""
        question, answer = Message("user", QUESTION), Message("assistant", ANSWER)
        for messages in ([question, answer], [question, answer, question]):
            try:
                text = self.template.render(messages, generation_prompt=False)
            except (DataError, ConfigError):
                return None
            after = text.rpartition(ANSWER)[2]
            if after.strip():
                return after
        return None

    def _as_one_token(self, text: str) -> int | None:
        if text in self._tokenizer.added:
            return self._tokenizer.added[text]
        token_ids = self._tokenizer.encode(text, special=False)
        whole = len(token_ids) == 1 and self._tokenizer.decode(token_ids, skip_special_tokens=False) == text
        return token_ids[0] if whole else None

    def _check_can_appear(self, text: str) -> None:
        for token, index in self._tokenizer.added.items():
            if token in text and index in self._tokenizer.special_ids:
                raise ConfigError(
                    f"rollout.stop={text!r}: contains the special token {token!r}, which decoded text never contains, "
                    f"so that it would never stop a completion; give the token alone, {token!r}"
                )


def uses_chat(data: DataConfig) -> bool:
    """Returns whether prompts, or those of a part of a mixture, go through the chat template."""
    if isinstance(data, Mixture):
        return any(map(uses_chat, data.sources))
    return data.chat if isinstance(data, Table) else True


def _compared(text: str) -> str:
    # SentencePiece writes a space as a lower one eighth block, and reads that one as a space.
    return squeezed(text.replace("\u2581", " ")).casefold()
