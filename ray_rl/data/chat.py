"""Prompts to tokens, tokens to text, and what ends a completion: the model's tokenizer with its chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.config import RunConfig
from ray_rl.config.data import DataConfig, Table
from ray_rl.data.tokenizer import ModelTokenizer, load_tokenizer, squeezed
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Message

if TYPE_CHECKING:
    from ray_rl.data.template import ChatTemplate

ANSWER = "Zq42qZ"
"""An answer that stands nowhere else in a rendered conversation: what follows it ends a turn."""
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
"""What the chat templates of common models write last, before an answer."""
_OPENED_THINKING = re.compile(r"\s*<think>\s*(?:</think>)?\s*$")


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends a completion."""

    token_ids: tuple[int, ...]
    """The completion ends with the first of these tokens, which it includes."""
    texts: tuple[str, ...]
    """The completion ends where the first of these texts is complete."""


class ChatTokenizer:
    """A model's tokenizer with its chat template.

    Prompts become tokens once, here. A completion starts where its prompt's tokens end: by position, whatever the
    tokens are. Text is decoded for rewards and people only, and never tokenised again.
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
            chat_template: Jinja, a file of it, or the name of one of the model's templates; None is the model's own.
            template_options: values for variables that the template reads.

        Raises:
            DataError: there is no tokenizer, or `chat_template` is not valid.
            ConfigError: `chat_template` is neither Jinja nor a file nor a name, or an option is not read by it.
        """
        self._owner = folder
        self._tokenizer: ModelTokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self._own_template = None if chat_template is None else template_text(chat_template, self._tokenizer.templates)
        self._options = template_options or {}
        self._eos_token_ids = _eos_token_ids(self._tokenizer)
        # Compiled now, as an export would find out after the last step that the template is not valid.
        self._changed = self._template.text if self._own_template is not None or self._options else None

    @classmethod
    def of_run(cls, config: RunConfig, folder: str | Path) -> ChatTokenizer:
        """The policy's, as a run has it.

        Args:
            config: the configuration of the run.
            folder: where the policy's files lie, or a hub name.

        Raises:
            DataError, ConfigError: as the constructor, or options come without a chat template.
        """
        if config.data.template_options and not uses_chat(config.data):
            raise ConfigError("data.template_options needs the chat template, but data.chat=false; remove it")
        return cls(
            folder,
            trust_remote_code=config.model.trust_remote_code,
            chat_template=config.model.chat_template,
            template_options=config.data.template_options,
        )

    @property
    def model_tokenizer(self) -> ModelTokenizer:
        """Text to tokens without a template."""
        return self._tokenizer

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text: the tokenizer's, then those of generation_config.json."""
        return self._eos_token_ids

    @property
    def changed_template(self) -> str | None:
        """The chat template that an export has to carry: None if it is the tokenizer's own, without options."""
        return self._changed

    @cached_property
    def turn_end(self) -> int | None:
        """The token that the chat template writes behind an answer, if it is a token of its own."""
        after = self._after_an_answer()
        token_ids = self._tokenizer.encode(after, special=False) if after else []
        added = set(self._tokenizer.added.values())
        # Space before it is part of the turn; a word there is one that only this template's next turn begins with.
        spoken = [i for i in token_ids if i in added or self._tokenizer.decode([i], skip_special_tokens=False).strip()]
        return spoken[0] if spoken and spoken[0] in added else None

    def ends(self, stop: Sequence[str], stop_token_ids: Sequence[int], *, chat: bool) -> Ends:
        """What ends a completion: the model's tokens, the template's turn end, and what the configuration adds.

        A text that is one token also ends a completion as that token: special tokens are in no decoded text.

        Args:
            stop: `rollout.stop`.
            stop_token_ids: `rollout.stop_token_ids`.
            chat: prompts went through the chat template.

        Raises:
            ConfigError: a token that the tokenizer has not, or a text with a special token in it that never appears.
        """
        token_ids = [*self._eos_token_ids, *stop_token_ids]
        if chat and self.turn_end is not None:
            token_ids.append(self.turn_end)
        known = set(self._tokenizer.vocabulary.values())
        for token in stop_token_ids:
            if token not in known:
                raise ConfigError(
                    f"rollout.stop_token_ids={token}: the tokenizer of {self._owner} has no such token, its largest is "
                    f"{max(known)}; name one of its own"
                )
        for text in stop:
            as_token = self._as_one_token(text)
            if as_token is None:
                self._check_can_appear(text)
            else:
                token_ids.append(as_token)
        return Ends(tuple(dict.fromkeys(token_ids)), tuple(dict.fromkeys(stop)))

    def ends_of(self, config: RunConfig) -> Ends:
        """What ends a completion of a run.

        Raises:
            ConfigError: as `ends`.
        """
        return self.ends(config.rollout.stop, config.rollout.stop_token_ids, chat=uses_chat(config.data))

    def encode(self, prompt: str | Sequence[Message], *, chat: bool) -> tuple[int, ...]:
        """Tokens of a prompt.

        Args:
            prompt: text, or a conversation.
            chat: apply the chat template, generation prompt included; text is then one user message. Without, text is
                tokenised as it is, behind the special tokens that the tokenizer puts at the start by itself; what it
                puts at the end would end the completion before it begins, and is left out.

        Raises:
            DataError: the model has no chat template, the template refuses or loses text, the tokenizer loses text, or
                a conversation comes with chat False.
        """
        if not chat:
            if not isinstance(prompt, str):
                raise DataError("data.chat=false feeds text, but the prompt is a list of messages; set data.chat: true")
            token_ids = self._open_ended(prompt)
            self._check_decodes([prompt], token_ids)
            self._check_embedded(token_ids)
            return tuple(token_ids)
        messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        self._check_not_rendered(messages[-1].content)
        text = self._template.render(messages, generation_prompt=True)
        token_ids = self._tokenizer.encode(text, special=False)
        written = squeezed(text)
        self._check_decodes([m.content for m in messages if squeezed(m.content) in written], token_ids)
        self._check_embedded(token_ids)
        return tuple(token_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self._tokenizer.decode(token_ids)

    @cached_property
    def _template(self) -> ChatTemplate:
        from ray_rl.data.template import ChatTemplate

        text = self._own_template
        if text is None:
            templates = self._tokenizer.templates
            text = templates.get("default")
            if text is None and templates:
                raise DataError(
                    f"model.path={self._owner}: the tokenizer has the chat templates {', '.join(sorted(templates))}, "
                    "and none of them is called default; set model.chat_template to the name of one, or to your own"
                )
        if text is None:
            raise DataError(
                f"model.path={self._owner}: the tokenizer has no chat template; use an instruct model, "
                "or set model.chat_template, or a text source with data.chat: false"
            )
        return ChatTemplate(
            text, special_tokens=self._tokenizer.special_tokens, owner=str(self._owner), options=self._options
        )

    def _open_ended(self, text: str) -> list[int]:
        """Tokens of a text with those that the tokenizer puts before it, without those that it puts behind it."""
        bare, whole = self._tokenizer.encode(text, special=False), self._tokenizer.encode(text, special=True)
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[: start + len(bare)]
        return whole

    def _check_not_rendered(self, content: str) -> None:
        """Refuses a text that went through a chat template before: the model would see a conversation in a message."""
        end = _OPENED_THINKING.sub("", content[-SHOWN_CHARACTERS:]).rstrip()
        if end.endswith(BEGINS_ANSWERS):
            raise DataError(
                f"the prompt ends with what a chat template writes before an answer, {end[-40:]!r}: it has "
                "gone through one already; set data.chat: false, or give the question alone"
            )

    def _check_embedded(self, token_ids: Sequence[int]) -> None:
        """Refuses tokens that the model has no rows for, such as those of images in a model of text."""
        beyond = next((token for token in token_ids if self._rows is not None and token >= self._rows), None)
        if beyond is not None:
            text = self._tokenizer.decode([beyond], skip_special_tokens=False)
            raise DataError(
                f"the prompt holds the token {text!r} ({beyond}), and the model of {self._owner} has {self._rows} rows "
                "of embeddings; remove it from the text"
            )

    @cached_property
    def _rows(self) -> int | None:
        """Rows of the model's embedding, if the tokenizer lies beside its config.json."""
        file = self._tokenizer.folder / "config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        rows = settings.get("vocab_size", (settings.get("text_config") or {}).get("vocab_size"))
        return rows if isinstance(rows, int) else None

    def _check_decodes(self, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        """Refuses tokens that do not hold the texts, but for space and what the tokenizer normalizes."""
        if self._tokenizer.library is None:
            return  # A tokenizer in Python may rewrite text in its own ways.
        whole = _compared(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        lost = next((text for text in texts if not self._is_in(text, whole)), None)
        # An unknown word stands for what it is not: that is how such a model reads every text.
        if lost is not None and self._tokenizer.unknown.isdisjoint(token_ids):
            raise DataError(
                f"the tokenizer of {self._owner} loses text: {lost[:SHOWN_CHARACTERS]!r} becomes "
                f"{self._tokenizer.decode(token_ids)[-SHOWN_CHARACTERS:]!r}; use text that the model can read, or "
                "another tokenizer"
            )

    def _is_in(self, text: str, whole: str) -> bool:
        return _compared(text) in whole or _compared(self._tokenizer.normalized(text)) in whole

    def _after_an_answer(self) -> str | None:
        """What the template writes behind an answer: up to the end, or where that is nothing, before the next turn."""
        question, answer = Message("user", "1+1?"), Message("assistant", ANSWER)
        for messages in ([question, answer], [question, answer, question]):
            try:
                text = self._template.render(messages, generation_prompt=False)
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
                    f"rollout.stop={text!r}: holds the special token {token!r}, which is in no decoded text, so that "
                    f"nothing would ever stop; name the token alone, {token!r}"
                )


def template_text(value: str, templates: Mapping[str, str]) -> str:
    """The Jinja text that `model.chat_template` stands for.

    Args:
        value: Jinja, a file of it, or a name.
        templates: the templates of the model, by name.

    Raises:
        ConfigError: it is none of them.
    """
    if value in templates:
        return templates[value]
    text = without_file(value)
    if not _is_jinja(text) and text == value:
        raise ConfigError(
            f"model.chat_template={value}: is no Jinja text, no file, and no name of a template of the model, "
            f"which has {', '.join(sorted(templates)) or 'none'}"
        )
    return text


def without_file(value: str) -> str:
    """`model.chat_template` with a file's text in place of its path.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = Path(value).expanduser()
    if _is_jinja(value) or not file.is_file():
        return value
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.chat_template={value}: the file cannot be read: {error}") from error


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def without_end(tokenizer: ChatTokenizer, config: RunConfig) -> str | None:
    """A warning, if nothing but their limit ends the completions of a run."""
    ends = tokenizer.ends_of(config)
    if ends.token_ids or ends.texts:
        return None
    return (
        f"warning: nothing ends a completion of {config.model.path}: neither its tokenizer nor generation_config.json "
        f"nor the chat template; each runs to rollout.max_tokens={config.rollout.max_tokens}; "
        "set rollout.stop_token_ids or rollout.stop"
    )


def uses_chat(data: DataConfig) -> bool:
    """Whether prompts go through the chat template."""
    return data.chat if isinstance(data, Table) else True


def _compared(text: str) -> str:
    # SentencePiece writes a space as a lower one eighth block, and reads that one as a space.
    return squeezed(text.replace("\u2581", " ")).casefold()


def _eos_token_ids(tokenizer: ModelTokenizer) -> tuple[int, ...]:
    """Tokens that end a text, as transformers finds them: generation_config.json says it, or else config.json."""
    of_tokenizer = tokenizer.id_of("eos_token")
    token_ids = [] if of_tokenizer is None else [of_tokenizer]
    for name in ("generation_config.json", "config.json"):
        file = tokenizer.folder / name
        if not file.is_file():
            continue
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            # Of a model that sees, the part that writes has settings of its own.
            declared = settings.get("eos_token_id", settings.get("text_config", {}).get("eos_token_id"))
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: is not a JSON object ({error}); restore the file") from error
        listed = declared if isinstance(declared, list) else [] if declared is None else [declared]
        if not all(isinstance(token, int) for token in listed):
            raise DataError(f"{file}: eos_token_id={declared!r} is no token id; write a number or a list of numbers")
        token_ids += listed
        break
    return tuple(dict.fromkeys(token_ids))
