"""Tokenises answers as an engine would sample them: after the tokens of the prompt, up to the token that ends them."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.formats.record import Unusable
from ray_rl.data.tokenizer import squeezed
from ray_rl.errors import DataError

CONTEXT_TOKENS = 64
"""The most tokens of a prompt that are tokenised again in front of an answer."""
MOST_CONTEXTS = 10_000
"""The most ends of prompts whose text is remembered: with a chat template there are one or two."""

_THINK, _THOUGHT = "<think>", "</think>"


class AnswerTokenizer:
    """Tokenises answers.

    The text that the template writes behind an answer is not part of it. TRL's completions of ChatML templates end in
    `<|im_end|>` and a line end, which no engine samples.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, chat: bool) -> None:
        """Makes the tokenizer of answers.

        Args:
            tokenizer: the tokenizer of the model.
            chat: whether prompts go through the chat template.

        Raises:
            DataError: no token ends an answer.
        """
        self._tokenizer = tokenizer
        self._model = tokenizer.model_tokenizer
        self.end = tokenizer.answer_end(chat=chat)
        """The token that ends an answer."""
        self._end_text = self._model.decode([self.end], skip_special_tokens=False)
        self._ends = frozenset(tokenizer.ends((), (), chat=chat).token_ids)
        texts = [self._model.decode([end], skip_special_tokens=False) for end in self._ends]
        self._end_texts = [text for text in texts if text]
        self.start = tokenizer.answer_start if chat else ""
        """The text that the chat template writes before every answer."""
        opened = tokenizer.prompt_end.rstrip() if chat else ""
        self._thinks, self._has_thought = opened.endswith(_THINK), opened.endswith(_THOUGHT)
        self._added = frozenset(self._model.added.values())
        self._contexts: dict[tuple[int, ...], tuple[str, list[int]]] = {}

    def whole(self, prompt_ids: Sequence[int], text: str) -> list[int]:
        """Returns the tokens of an answer to a prompt, with the token that ends it.

        Raises:
            DataError: the tokenizer loses text, or the answer lacks thoughts that the generation prompt begins.
            Unusable: there is a token that ends a turn inside the answer.
        """
        text = self._sampled(text)
        token_ids = self.after(prompt_ids, text)
        self._tokenizer.check([text], token_ids)
        if not self._ends.isdisjoint(token_ids):
            raise Unusable("an answer with the token that ends a turn inside it")
        return [*token_ids, self.end]

    def after(self, before: Sequence[int], text: str) -> list[int]:
        """Returns the tokens of a text after other tokens, none of which changes.

        The text is tokenised together with what precedes it, because many tokenizers write a space at the start of a
        text, which is not there inside a sequence. If the two texts share a token, the text is tokenised alone: an
        engine continues from the tokens of the prompt, and cannot take one of them back.
        """
        start = max((place for place, token in enumerate(before) if token in self._added), default=0)
        context = tuple(before[max(start, len(before) - CONTEXT_TOKENS) :])
        if context not in self._contexts:
            if len(self._contexts) >= MOST_CONTEXTS:
                self._contexts.clear()
            self._contexts[context] = self._read(context)
        read, again = self._contexts[context]
        if again:
            joint = self._model.encode(read + text, special=False)
            if joint[: len(again)] == again:
                return joint[len(again) :]
        return self._model.encode(text, special=False)

    def _read(self, context: tuple[int, ...]) -> tuple[str, list[int]]:
        """Returns the text of the last tokens of a prompt, and its tokens; none if they end differently.

        They may begin differently: SentencePiece writes a space at the start of a text, and after a special token.
        """
        read = self._model.decode(context, skip_special_tokens=False)
        again = self._model.encode(read, special=False)
        same = max(1, len(context) - 2)
        return read, again if tuple(again[-same:]) == context[-same:] else []

    def span(
        self, token_ids: Sequence[int], before: Sequence[int], text: str, *, may_add: bool = False
    ) -> tuple[int, int] | None:
        """Returns where the answer to a prompt lies in a longer conversation, with the token that ends it.

        Args:
            token_ids: the tokens of the longer conversation.
            before: the tokens of the prompt, as an engine gets it.
            text: the answer.
            may_add: the template may add something to the answer, as an empty thought.

        Returns:
            The first position and the one after the last; None if these tokens are not what an engine would sample
            after `before`: the conversation does not begin with it, or shows the answer differently or without an end.
        """
        start = len(before)
        end = self.end_after(token_ids, start) if tuple(token_ids[:start]) == tuple(before) else None
        if end is None:
            return None
        answer = token_ids[start:end]
        written = squeezed(self._model.decode(answer, skip_special_tokens=False))
        text = self._sampled(text)
        forms = {squeezed(text), squeezed(self._model.normalized(text))}
        is_same = any(form in written for form in forms) if may_add else written in forms
        # The unknown token replaces words that are not in the vocabulary; such a model reads every text so.
        return (start, end + 1) if is_same or not self._model.unknown.isdisjoint(answer) else None

    def end_after(self, token_ids: Sequence[int], start: int) -> int | None:
        """Returns the first place from `start` with the token that ends an answer; None if there is none."""
        return next((place for place in range(start, len(token_ids)) if token_ids[place] == self.end), None)

    def _sampled(self, text: str) -> str:
        """Returns the text that an engine would sample for an answer, without the token that ends it."""
        has_thoughts = _THOUGHT in text
        start = "" if has_thoughts and _THOUGHT in self.start else self.start
        if self._thinks and _THOUGHT not in start + text:
            raise DataError(
                f"the generation prompt of the chat template ends with {_THINK}, but the answer has no {_THOUGHT}, "
                "so that the model would learn to answer in its thoughts; write thoughts into the answers, or set "
                "data.template_options or model.chat_template so that the prompt does not begin them"
            )
        if self._has_thought and text.lstrip().startswith(_THINK):
            raise DataError(
                f"the generation prompt of the chat template ends with an empty thought, and the answer begins with "
                f"{_THINK}; remove the thoughts from the answers, or set data.template_options so that the model thinks"
            )
        if self._thinks and has_thoughts:
            text = text.lstrip().removeprefix(_THINK).lstrip("\n")
        return start + self.without_end(text)

    def refuse_an_end_inside(self, text: str, *, what: str) -> None:
        """Refuses a text that has a token that ends a turn: no model would have written the rest of it.

        Raises:
            Unusable: it has one; `what` is the text for people.
        """
        if any(end in text for end in self._end_texts):
            raise Unusable(f"{what} with the token that ends a turn inside it")

    def without_end(self, text: str) -> str:
        """Returns the answer without an end of a turn, which data that was written for other programs often has."""
        ended = text.rstrip()
        return ended.removesuffix(self._end_text) if ended.endswith(self._end_text) else text
