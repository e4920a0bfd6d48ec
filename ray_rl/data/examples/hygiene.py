"""Leaves out or cuts examples that are too long or have been seen before, and counts them by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from ray_rl.config.data import Source
from ray_rl.data.chat import ChatTokenizer
from ray_rl.errors import DataError
from ray_rl.types import Example


@dataclass(slots=True)
class Hygiene:
    """The rules about which examples are used, and what they left out so far."""

    max_tokens: int
    """`data.max_tokens`."""
    too_long: Literal["drop", "cut_prompt_left", "error"]
    """`data.too_long`."""
    deduplicate: bool
    """`data.deduplicate`."""
    kept_first: frozenset[int]
    """Tokens that stay at the start of a prompt that is cut: special ones, such as bos."""
    kept_end: int
    """Number of tokens at the end of a prompt that are never cut: the generation prompt, and the end of its message."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of examples that were left out, by reason."""
    cut: int = 0
    """Number of examples whose prompt was cut."""
    repeated: int = 0
    """Number of examples that are equal to an earlier one."""
    longest: int = 0
    """Tokens of the longest sequence, before anything was cut."""
    seen: set[str] = field(default_factory=set)
    """Keys of the examples that were used; equal examples have the same key. The parts of a mixture share the set."""

    def admitted(self, example: Example, *, where: str) -> Example | None:
        """Returns the example as it is used, perhaps with a shorter prompt; None if it is left out.

        Args:
            example: the example, whole.
            where: the place of its row, for errors.

        Raises:
            DataError: it is too long, and `data.too_long` is error.
        """
        fitting = self._fitted(example, where=where)
        if fitting is None:
            return None
        key = f"{fitting.digest} {fitting.label} {fitting.margin} {_labels(fitting)}"
        if key in self.seen:
            self.repeated += 1
            if self.deduplicate:
                self.left_out["the same as an earlier one"] += 1
                return None
        self.seen.add(key)
        return fitting

    def _fitted(self, example: Example, *, where: str) -> Example | None:
        answer = max(len(answer.token_ids) for answer in example.answers)
        prompt = len(example.prompt_ids)
        self.longest = max(self.longest, prompt + answer)
        if prompt + answer <= self.max_tokens:
            return example
        if self.too_long == "error":
            raise DataError(
                f"{where}: {prompt + answer} tokens, more than data.max_tokens={self.max_tokens}; raise it, or set "
                "data.too_long to drop or cut_prompt_left"
            )
        first = int(example.prompt_ids[0] in self.kept_first)
        room = self.max_tokens - answer - first
        if self.too_long == "drop":
            self.left_out[f"more than data.max_tokens={self.max_tokens}"] += 1
            return None
        if room < max(self.kept_end, 1 - first):
            self.left_out[f"an answer that leaves no room for a prompt in data.max_tokens={self.max_tokens}"] += 1
            return None
        self.cut += 1
        # The answers share one prompt, so that both are cut equally.
        return replace(example, prompt_ids=example.prompt_ids[:first] + example.prompt_ids[prompt - room :])


def hygiene_of(tokenizer: ChatTokenizer, data: Source, *, chat: bool, seen: set[str]) -> Hygiene:
    """Returns the rules of a source.

    Args:
        tokenizer: the tokenizer of the model.
        data: the source.
        chat: whether prompts go through the chat template.
        seen: the keys of the examples that other parts of a mixture have used.
    """
    end = tokenizer.model_tokenizer.encode(tokenizer.prompt_end, special=False) if chat else []
    special = tokenizer.model_tokenizer.special_ids
    return Hygiene(data.max_tokens, data.too_long, data.deduplicate, kept_first=special, kept_end=len(end), seen=seen)


def _labels(example: Example) -> list[float] | None:
    return None if example.step_labels is None else example.step_labels.tolist()
