"""Examples of conversations, and the texts of their tokens."""

from itertools import pairwise

import numpy as np

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.tokenize import ExampleTokenizer
from ray_rl.types import Example, Message


def said(*texts: str) -> tuple[Message, ...]:
    """Turns of the user and the assistant in turn."""
    return tuple(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(texts))


def answered(*texts: str) -> tuple[Message, ...]:
    return tuple(Message(("assistant", "user")[place % 2], text) for place, text in enumerate(texts))


def example_of(tokenizer: ChatTokenizer, record, **settings) -> Example:
    return ExampleTokenizer(tokenizer, **{"chat": True} | settings).example(record, id="t:1", where="t.jsonl:1")


def parts(tokenizer: ChatTokenizer, example: Example, index: int = 0) -> list[tuple[str, bool]]:
    """The text after the prompt in runs of equal mask: what is trained on, and what is not."""
    answer = example.answers[index]
    edges = [0, *(np.flatnonzero(np.diff(answer.loss_mask)) + 1), len(answer.token_ids)]
    decode = tokenizer.model_tokenizer.decode
    return [
        (decode(answer.token_ids[a:b].tolist(), skip_special_tokens=False), bool(answer.loss_mask[a]))
        for a, b in pairwise(edges)
    ]


def prompt_text(tokenizer: ChatTokenizer, example: Example) -> str:
    return tokenizer.model_tokenizer.decode(example.prompt_ids, skip_special_tokens=False)


def trained(tokenizer: ChatTokenizer, example: Example, index: int = 0) -> list[str]:
    """The texts that are trained on."""
    return [text for text, is_trained in parts(tokenizer, example, index) if is_trained]
