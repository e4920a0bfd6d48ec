"""Turns records into tokenised examples, in which nothing is trained on that an engine would not sample.

The context of an answer is the prompt with the generation prompt, tokenised as for an engine. TRL instead tokenises the
prompt and the answer as one text, and drops the end of the prompt where the two disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from ray_rl.config.offline import TrainOn
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.answers import AnswerTokenizer
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
        answer = self._answer(prompt, prompt_ids, completion, untrained=untrained)
        if self._train_on == "all":
            answer = self._with_prompt(record, prompt_ids, answer)
            prompt_ids = ()
        if not prompt_ids:
            # The first token of a sequence is predicted from nothing.
            prompt_ids = (int(answer.token_ids[0]),)
            answer = Answer(answer.token_ids[1:], answer.loss_mask[1:])
        if not answer.loss_mask.any():
            raise Unusable("no token to train on")
        return Example(
            id=id, prompt_ids=prompt_ids, answers=(answer,), prompt=_shown(prompt), texts=(_shown(completion),)
        )

    def _with_prompt(self, record: Demonstration, prompt_ids: tuple[int, ...], answer: Answer) -> Answer:
        """Returns the whole sequence as what is trained on, without the turns that the record excludes."""
        token_ids = [*prompt_ids, *answer.token_ids.tolist()]
        loss_mask = np.ones(len(token_ids), np.bool_)
        for index in record.untrained:
            assert not isinstance(record.completion, str), "only turns are excluded"
            before = self._encode((*as_messages(self._asked(record), "user"), *record.completion[:index]))
            loss_mask[slice(*self._span(token_ids, before, record.completion[index].content))] = False
        return Answer(np.asarray(token_ids, np.int32), loss_mask)

    def _comparison(self, record: Comparison, prompt: Content, *, id: str) -> Example:
        completions = (record.chosen, record.rejected)
        if self._rendered:
            prompt_ids, (chosen, rejected) = _split([self._conversation(prompt, each) for each in completions])
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

    def _answer(
        self,
        prompt: Content,
        prompt_ids: tuple[int, ...],
        completion: Content,
        *,
        untrained: frozenset[int] = frozenset(),
    ) -> Answer:
        """Returns what follows the prompt: a turn of the assistant, or several with the turns between them.

        The loss is on the turns of the assistant with the tokens that end them, except the untrained ones.
        """
        if isinstance(completion, str):
            token_ids = self._answers.whole(prompt_ids, completion)
            return Answer(np.asarray(token_ids, np.int32), np.ones(len(token_ids), np.bool_))
        said = [index for index, message in enumerate(completion) if message.role == "assistant"]
        before = {index: self._encode((*as_messages(prompt, "user"), *completion[:index])) for index in said if index}
        before[0] = prompt_ids
        last = said[-1]
        token_ids = [*before[last], *self._answers.whole(before[last], completion[last].content)]
        loss_mask = np.zeros(len(token_ids), np.bool_)
        loss_mask[len(before[last]) :] = True
        for index in said[:-1]:
            if index not in untrained:
                loss_mask[slice(*self._span(token_ids, before[index], completion[index].content))] = True
        return Answer(np.asarray(token_ids[len(prompt_ids) :], np.int32), loss_mask[len(prompt_ids) :])

    def _span(self, token_ids: Sequence[int], before: Sequence[int], text: str) -> tuple[int, int]:
        span = self._answers.span(token_ids, before, text)
        if span is None:
            raise _rewritten(text)
        return span

    def _asked(self, record: Record) -> Content:
        return with_system_prompt(record.prompt, self._system_prompt, where="the prompt")

    def _encode(self, prompt: Content) -> tuple[int, ...]:
        return self._tokenizer.encode(prompt, chat=self._chat)


def _split(conversations: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], list[Answer]]:
    """Returns the common beginning of two conversations, and what follows it in each, at least one token."""
    first, second = conversations
    most = min(len(first), len(second)) - 1
    same = next((i for i in range(most) if first[i] != second[i]), most)
    rest = [np.asarray(conversation[same:], np.int32) for conversation in conversations]
    return first[:same], [Answer(token_ids, np.ones(len(token_ids), np.bool_)) for token_ids in rest]


def _rewritten(text: str) -> DataError:
    return DataError(
        f"the chat template shows an earlier turn of the assistant, {text[:60]!r}, not as the model would sample it at "
        "its place (templates of reasoning models drop earlier thoughts); set algorithm.train_on: last_turn, or "
        "model.chat_template to one that keeps earlier turns"
    )


def _shown(content: Content) -> str:
    """Returns a text for people: of a conversation, the last message."""
    return content if isinstance(content, str) else content[-1].content
