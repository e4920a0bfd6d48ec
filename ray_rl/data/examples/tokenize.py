"""Turns records into tokenised examples, in which nothing is trained on that an engine would not sample.

The context of an answer is the prompt with the generation prompt, tokenised as for an engine. TRL instead tokenises the
prompt and the answer as one text, and drops the end of the prompt where the two disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from ray_rl.config.offline import TrainOn
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.answers import AnswerTokenizer
from ray_rl.data.examples.turns import TurnTokenizer, rewritten
from ray_rl.data.formats.record import Comparison, Content, Demonstration, Judged, Record, Steps, Unusable
from ray_rl.data.messages import as_messages, with_system_prompt
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Answer, Example, Message


class ExampleTokenizer:
    """Tokenises records with the settings of a run."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        chat: bool,
        system_prompt: str | None = None,
        train_on: TrainOn = "assistant",
        separator: str = "\n",
        rendered: bool = False,
    ) -> None:
        """Makes the tokenizer of a run's examples.

        Args:
            tokenizer: the tokenizer of the model.
            chat: whether prompts go through the chat template.
            system_prompt: `data.system_prompt`.
            train_on: the tokens of demonstrations with a loss.
            separator: the text after each step of a solution, whose last token has the label of the step.
            rendered: comparisons are whole conversations of the chat template, with the text that it writes after an
                answer: so the reward `kind: model` reads them.

        Raises:
            DataError: no token ends an answer.
        """
        self._tokenizer = tokenizer
        self._chat = chat
        self._system_prompt = system_prompt
        self._train_on = train_on
        self._answers = AnswerTokenizer(tokenizer, chat=chat)
        self._turns = TurnTokenizer(tokenizer, self._answers, chat=chat)
        self._separator = separator
        self._rendered = rendered and chat

    def example(self, record: Record, *, id: str, where: str) -> Example:
        """Returns the tokens of a record.

        Args:
            record: the record.
            id: the id of the example.
            where: the place of its row, for errors.

        Raises:
            DataError: the template or the tokenizer refuses the record or loses text, or the template rewrites earlier
                turns; the message begins with the place.
            Unusable: the record can be read, but not be trained on.
        """
        try:
            prompt = self._asked(record)
            match record:
                case Demonstration():
                    return self._demonstration(record, prompt, id=id)
                case Comparison():
                    return self._comparison(record, prompt, id=id)
                case Judged():
                    return self._judged(record, prompt, id=id)
                case Steps():
                    return self._steps(record, prompt, id=id)
                case _:
                    assert_never(record)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _demonstration(self, record: Demonstration, prompt: Content, *, id: str) -> Example:
        completion, untrained = record.completion, record.untrained
        if self._train_on != "assistant" and not isinstance(completion, str):
            prompt = (*as_messages(prompt, "user"), *completion[:-1])
            completion, untrained = completion[-1:], frozenset()
        prompt_ids = self._encode(prompt)
        token_ids, is_trained = self._turns.sequence(prompt, prompt_ids, completion, untrained=untrained)
        start = len(prompt_ids)
        if self._train_on == "all":
            start, is_trained = 0, self._all_trained(record, token_ids)
        elif tuple(token_ids[:start]) != prompt_ids:
            start = int(np.argmax(is_trained))  # the template rewrites the prompt in front of later turns
        # The first token of a sequence is predicted from nothing.
        start = max(start, 1)
        prompt_ids, answer = tuple(token_ids[:start]), _answer(token_ids, is_trained, start)
        return Example(
            id=id, prompt_ids=prompt_ids, answers=(answer,), prompt=_shown(prompt), texts=(_shown(completion),)
        )

    def _all_trained(self, record: Demonstration, token_ids: Sequence[int]) -> NDArray[np.bool_]:
        """Returns the mask of every token, without the turns that the record excludes."""
        is_trained = np.ones(len(token_ids), np.bool_)
        for index in record.untrained:
            assert not isinstance(record.completion, str), "only turns are excluded"
            before = self._encode((*as_messages(self._asked(record), "user"), *record.completion[:index]))
            is_trained[slice(*self._turns.span(token_ids, before, record.completion[index].content))] = False
        return is_trained

    def _comparison(self, record: Comparison, prompt: Content, *, id: str) -> Example:
        completions = (record.chosen, record.rejected)
        if self._rendered:
            conversations = [self._conversation(prompt, each) for each in completions]
            prompt_ids, (chosen, rejected) = _split(conversations, prompt_ids=self._encode(prompt))
        else:
            prompt_ids = self._encode(prompt)
            chosen, rejected = (self._answer(prompt, prompt_ids, completion) for completion in completions)
        if np.array_equal(chosen.token_ids, rejected.token_ids):
            raise Unusable("chosen and rejected have the same tokens")
        return Example(
            id=id,
            prompt_ids=prompt_ids,
            answers=(chosen, rejected),
            margin=record.margin,
            prompt=_shown(prompt),
            texts=(_shown(record.chosen), _shown(record.rejected)),
        )

    def _conversation(self, prompt: Content, completion: Content) -> tuple[int, ...]:
        *before, last = as_messages(completion, "assistant")
        answer = Message(last.role, self._answers.without_end(last.content))
        self._answers.refuse_an_end_inside(answer.content, what="an answer")
        return self._tokenizer.encode((*as_messages(prompt, "user"), *before, answer), chat=True, answered=True)

    def _judged(self, record: Judged, prompt: Content, *, id: str) -> Example:
        prompt_ids = self._encode(prompt)
        answer = self._answer(prompt, prompt_ids, record.completion)
        return Example(
            id=id,
            prompt_ids=prompt_ids,
            answers=(answer,),
            label=record.label,
            prompt=_shown(prompt),
            texts=(_shown(record.completion),),
        )

    def _steps(self, record: Steps, prompt: Content, *, id: str) -> Example:
        """Returns the steps, each with the separator after it; the loss is at the last token of labelled separators."""
        prompt_ids = self._encode(prompt)
        labels = [label for label in record.labels if label is not None]
        if not labels:
            raise Unusable("no step with a label")
        # The same tokens after every step: a step and the separator never share a token.
        separator = self._answers.after(self._tokenizer.model_tokenizer.encode("a", special=False), self._separator)
        if not separator:
            raise ConfigError(f"algorithm.separator={self._separator!r}: the tokenizer has no token for it")
        token_ids: list[int] = []
        loss_mask: list[bool] = []
        before: Sequence[int] = prompt_ids
        for step, label in zip(record.steps, record.labels, strict=True):
            self._answers.refuse_an_end_inside(step, what="a step")
            own = self._answers.after(before, step if token_ids else self._answers.start + step)
            self._tokenizer.check([step], own)
            token_ids += [*own, *separator]
            loss_mask += [False] * (len(own) + len(separator) - 1) + [label is not None]
            before = separator
        answer = Answer(np.asarray(token_ids, np.int32), np.asarray(loss_mask, np.bool_))
        return Example(
            id=id,
            prompt_ids=prompt_ids,
            answers=(answer,),
            step_labels=np.asarray(labels, np.float32),
            prompt=_shown(prompt),
            texts=("\n".join(record.steps),),
        )

    def _answer(self, prompt: Content, prompt_ids: tuple[int, ...], completion: Content) -> Answer:
        token_ids, is_trained = self._turns.sequence(prompt, prompt_ids, completion)
        if tuple(token_ids[: len(prompt_ids)]) != prompt_ids:
            raise rewritten(as_messages(completion, "assistant")[0].content)
        return _answer(token_ids, is_trained, len(prompt_ids))

    def _asked(self, record: Record) -> Content:
        return with_system_prompt(record.prompt, self._system_prompt, where="the prompt")

    def _encode(self, prompt: Content) -> tuple[int, ...]:
        return self._tokenizer.encode(prompt, chat=self._chat)


def _split(
    conversations: Sequence[tuple[int, ...]], *, prompt_ids: tuple[int, ...]
) -> tuple[tuple[int, ...], list[Answer]]:
    """Returns the part of the prompt with which both conversations begin, and what follows it, at least one token.

    Words that both answers begin with are not part of it: a prompt may be cut.
    """
    first, second = conversations
    most = min(len(first), len(second), len(prompt_ids) + 1) - 1
    same = next((i for i in range(most) if not first[i] == second[i] == prompt_ids[i]), most)
    rest = [np.asarray(conversation[same:], np.int32) for conversation in conversations]
    return first[:same], [Answer(token_ids, np.ones(len(token_ids), np.bool_)) for token_ids in rest]


def _answer(token_ids: Sequence[int], is_trained: NDArray[np.bool_], start: int) -> Answer:
    """Returns what is behind the prompt, which has `start` tokens.

    Raises:
        Unusable: no token of it is trained on.
    """
    if not is_trained[start:].any():
        raise Unusable("no token to train on")
    return Answer(np.asarray(token_ids[start:], np.int32), is_trained[start:])


def _shown(content: Content) -> str:
    """Returns a text for people: of a conversation, the last message."""
    return content if isinstance(content, str) else content[-1].content
