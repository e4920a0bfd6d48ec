"""Tokenises what follows a prompt, turn by turn: which tokens are the assistant's, and so trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.answers import AnswerTokenizer
from ray_rl.data.formats.record import Content
from ray_rl.data.messages import as_messages
from ray_rl.data.tokenizer import squeezed
from ray_rl.errors import DataError
from ray_rl.types import Message


class TurnTokenizer:
    """Tokenises the turns that follow a prompt.

    Where the chat template has `{% generation %}` markers, marked tokens are trained on. They may leave out turns and
    parts of turns, but nothing is trained on that an engine would not sample: a token of the generation prompt, text
    behind the token that ends a turn, or a turn that the template shows otherwise than at its own place.
    """

    def __init__(self, tokenizer: ChatTokenizer, answers: AnswerTokenizer, *, chat: bool) -> None:
        """Makes the tokenizer of turns; `chat`: prompts go through the chat template."""
        self._tokenizer, self._answers, self._chat = tokenizer, answers, chat
        self._has_markers = chat and tokenizer.has_markers

    def sequence(
        self,
        prompt: Content,
        prompt_ids: tuple[int, ...],
        completion: Content,
        *,
        untrained: frozenset[int] = frozenset(),
    ) -> tuple[list[int], NDArray[np.bool_]]:
        """Returns the tokens of a prompt and what follows it, to the end of the last answer, and the trained ones.

        Args:
            prompt: the prompt.
            prompt_ids: its tokens.
            completion: an answer, or turns of which the last is one.
            untrained: places in `completion` of turns of the assistant without a loss.

        Returns:
            The tokens, and a mask over them. They begin with `prompt_ids` if the first turn is trained on.

        Raises:
            DataError: the chat template does not show an earlier turn as it would be sampled; or as in `ChatTokenizer`.
            Unusable: as in `AnswerTokenizer.whole`.
        """
        turns, completion = as_messages(prompt, "user"), as_messages(completion, "assistant")
        said = [index for index, message in enumerate(completion) if message.role == "assistant"]
        before = {index: self._encode((*turns, *completion[:index])) for index in said if index}
        before[0] = prompt_ids
        last = said[-1]
        earlier = [index for index in said[:-1] if index not in untrained]
        if self._has_markers:
            return self._marked(turns, completion, before, earlier, last)
        token_ids = [*before[last], *self._answers.whole(before[last], completion[last].content)]
        is_trained = np.zeros(len(token_ids), np.bool_)
        is_trained[len(before[last]) :] = True
        for index in earlier:
            is_trained[slice(*self.span(token_ids, before[index], completion[index].content))] = True
        return token_ids, is_trained

    def span(self, token_ids: Sequence[int], before: Sequence[int], text: str) -> tuple[int, int]:
        """Returns `AnswerTokenizer.span` of an earlier turn.

        Raises:
            DataError: the turn is not shown as it would be sampled.
        """
        span = self._answers.span(token_ids, before, text)
        if span is None:
            raise rewritten(text)
        return span

    def _marked(
        self,
        turns: tuple[Message, ...],
        completion: Sequence[Message],
        before: Mapping[int, tuple[int, ...]],
        earlier: Sequence[int],
        last: int,
    ) -> tuple[list[int], NDArray[np.bool_]]:
        """Returns the tokens of a conversation and those that are marked, in the turns `earlier` and `last`."""
        start = len(before[last])
        shown = self._shown((*turns, *completion[: last + 1]), before[last], completion[last].content)
        if shown is None:
            # The template does not write the last answer as an engine would sample it: it is used as it is.
            text = completion[last].content
            token_ids = [*before[last], *self._answers.whole(before[last], text)]
            is_marked = np.zeros(len(token_ids), np.bool_)
            is_marked[:start] = self._tokenizer.marked((*turns, *completion[:last]), answered=False).is_generated
            is_marked[start:] = self._is_marked((*turns, *completion[: last + 1]), before[last], text)
        else:
            token_ids, is_marked = shown
        is_trained = np.zeros(len(token_ids), np.bool_)
        is_trained[start:] = is_marked[start:]
        for index in earlier:
            own = self._shown((*turns, *completion[: index + 1]), before[index], completion[index].content)
            if own is not None and own[0] == token_ids[: len(own[0])]:
                turn = slice(len(before[index]), len(own[0]))
                is_trained[turn] = self._to_the_end(token_ids[turn], is_marked[turn])
            elif is_marked[slice(*self._place(token_ids, before[index], start))].any():
                raise rewritten(completion[index].content)
        return token_ids, is_trained

    def _shown(
        self, conversation: Sequence[Message], before: Sequence[int], text: str
    ) -> tuple[list[int], NDArray[np.bool_]] | None:
        """Returns the tokens of a conversation to the end of its last answer, and which are marked.

        None if the template does not show the answer, which is `text`, as an engine would sample it after `before`.
        """
        marked = self._tokenizer.marked(conversation, answered=True)
        span = self._answers.span(marked.token_ids, before, text, may_add=True)
        if span is None:
            return None
        token_ids, is_marked = list(marked.token_ids[: span[1]]), marked.is_generated[: span[1]].copy()
        is_marked[slice(*span)] = self._to_the_end(token_ids[slice(*span)], is_marked[slice(*span)])
        return token_ids, is_marked

    def _is_marked(self, conversation: Sequence[Message], before: Sequence[int], text: str) -> bool:
        """Returns whether the last answer is marked, which the template shows otherwise than an engine would sample it.

        Raises:
            DataError: a part of it is marked, and its place in the answer is not known.
        """
        marked = self._tokenizer.marked(conversation, answered=True)
        start = _same(marked.token_ids, before)
        end = self._answers.end_after(marked.token_ids, start)
        turn = slice(start, None if end is None else end + 1)
        token_ids, is_generated = marked.token_ids[turn], marked.is_generated[turn]
        if not is_generated.any():
            return False
        for is_run_marked, run in groupby(zip(is_generated, token_ids, strict=True), key=itemgetter(0)):
            decoded = self._tokenizer.model_tokenizer.decode([token for _, token in run], skip_special_tokens=False)
            shown = squeezed(decoded)
            # What is not of the answer is what the template writes around it.
            if not is_run_marked and shown in squeezed(text) and any(map(str.isalnum, shown)):
                raise DataError(
                    f"the chat template does not mark a part of the answer, {decoded[:60]!r}, and does not show the "
                    "answer as the model would sample it, so that it is not known which part to train on; set "
                    "model.chat_template to one that marks whole answers, or has no markers"
                )
        return True

    def _to_the_end(self, token_ids: Sequence[int], is_marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Returns the marks of an answer, which reach to the token that ends it if only space is between."""
        places = np.flatnonzero(is_marked)
        if not len(places):
            return is_marked
        between = token_ids[places[-1] + 1 : -1]
        if self._tokenizer.model_tokenizer.decode(between, skip_special_tokens=False).strip():
            return is_marked
        reaching = is_marked.copy()
        reaching[places[-1] :] = True
        return reaching

    def _place(self, token_ids: Sequence[int], before: Sequence[int], last: int) -> tuple[int, int]:
        """Returns where a turn that is not shown exactly is: up to its end, or to the prompt of the last answer."""
        start = _same(token_ids, before)
        end = self._answers.end_after(token_ids, start) if start == len(before) else None
        return start, last if end is None else end + 1

    def _encode(self, prompt: Content) -> tuple[int, ...]:
        return self._tokenizer.encode(prompt, chat=self._chat)


def _same(token_ids: Sequence[int], before: Sequence[int]) -> int:
    """Returns the number of tokens at the start that are the same."""
    pairs = zip(token_ids, before, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def rewritten(text: str) -> DataError:
    """Returns the error about an earlier turn that is not shown as it would be sampled."""
    return DataError(
        f"the chat template shows an earlier turn of the assistant, {text[:60]!r}, not as the model would sample it at "
        "its place (templates of reasoning models drop earlier thoughts); set algorithm.train_on: last_turn, or "
        "model.chat_template to one that keeps earlier turns"
    )
