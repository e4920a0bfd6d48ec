"""What the settings of an exported classifier need, so that every loader reads its score at the same token.

transformers reads the score of a decoder at the last token that is not the padding token. If texts may end in the
padding token, as in many models, whose padding and end are the same token, it reads one token early. Engines and the
judges of this project read the last token, whatever it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.catalog.shapes import CHAT
from ray_rl.data.ends import eos_token_ids
from ray_rl.data.template import ChatTemplate
from ray_rl.data.tokenizer import ModelTokenizer, load_tokenizer
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
"""Ends of the names of transformers' classes."""
NAMES = {1: ("score",), 2: ("wrong", "right")}
"""Names of the labels of a reward model and of a process reward model, by their number."""
ANSWER = "an answer"


def describe_classifier(settings: dict[str, Any], to: Path, model: PreTrainedModel, *, chat: bool) -> None:
    """Adds labels and a padding token to `config.json`, and makes the padding token that of the tokenizer.

    Also records if the texts of its training did not go through the chat template, for the judges of this project.

    The padding token is one that cannot end a text. If the tokenizer has no such token, or cannot be read without its
    own code, there is none, and transformers then refuses batches of several texts.

    Args:
        settings: the content of `config.json`, which is changed.
        to: the folder, with the files of the tokenizer.
        model: the classifier.
        chat: whether the texts of its training went through the chat template.
    """
    settings.pop(CHAT, None)
    if not chat:
        settings[CHAT] = False
    names = NAMES[int(model.config.num_labels or 0)]
    settings["id2label"] = {str(label): name for label, name in enumerate(names)}
    settings["label2id"] = {name: label for label, name in enumerate(names)}
    token, index = None, None
    with suppress(DataError):
        tokenizer = load_tokenizer(to)
        token = padding_token(tokenizer, rows=model.config.get_text_config().vocab_size)
        index = None if token is None else tokenizer.vocabulary[token]
    for part in (settings, settings.get("text_config")):
        if isinstance(part, dict):
            part["pad_token_id"] = index
    if token is not None:
        _set_padding(to, token)


def padding_token(tokenizer: ModelTokenizer, *, rows: int) -> str | None:
    """Returns a special token that cannot end a text: the tokenizer's padding token, or another; None without one.

    A text may end in an end token, in any token that the chat template writes after an answer, and in an unknown word.

    Args:
        tokenizer: the tokenizer of the model, in a folder with the model's settings.
        rows: the number of embeddings of the model.
    """
    ends = {*eos_token_ids(tokenizer), *_after_an_answer(tokenizer), *tokenizer.unknown}
    named = [tokenizer.special_tokens.get(name) for name in ("pad_token", "bos_token")]
    special = sorted((index, text) for text, index in tokenizer.added.items() if index in tokenizer.special_ids)
    for token in (*named, *(text for _, text in special)):
        index = None if token is None else tokenizer.vocabulary.get(token)
        if index is not None and index not in ends and index < rows:
            return token
    return None


def _after_an_answer(tokenizer: ModelTokenizer) -> Iterable[int]:
    template = tokenizer.templates.get("default")
    if template is None:
        return ()
    conversation = [Message("user", "a question"), Message("assistant", ANSWER)]
    try:
        compiled = ChatTemplate(template, special_tokens=tokenizer.special_tokens, owner=str(tokenizer.folder))
        rendered = compiled.render(conversation, generation_prompt=False)
    except (DataError, ConfigError):  # the template is for other conversations, or the model was trained without it
        return ()
    return tokenizer.encode(rendered.rpartition(ANSWER)[2], special=False)


def _set_padding(folder: Path, token: str) -> None:
    """Makes a token the padding token in the settings of a copied tokenizer."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if file.is_file() or name == "tokenizer_config.json":
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            content["pad_token"] = token
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
