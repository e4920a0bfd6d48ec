"""Tokenizers with byte-level tokens and any chat template: what a template writes becomes the tokens that it means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from ray_rl.data.chat import ChatTokenizer
from tests.tokenizer_shapes import SHAPES

PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Added tokens that are not special, as in Qwen's tokenizer: decoding keeps them."""
CONTROL = re.compile(
    r"<[|\uff5c][A-Za-z_\u25810-9]+[|\uff5c]?>|<[a-z_]+\|>|<(?:start|end)_of_[a-z]+>|\[gMASK\]|<sop>|" + "|".join(PLAIN)
)


@cache
def _base() -> str:
    shape = next(shape for shape in SHAPES if shape.name == "qwen-base")
    text: str = shape.build().to_str()
    return text


def chat_model(folder: Path, template: str, *, ends: Sequence[str], special: Sequence[str] = ()) -> ChatTokenizer:
    """Writes the files of a tokenizer, and loads them.

    Args:
        folder: an empty folder.
        template: the chat template; texts such as `<|im_start|>` in it become tokens.
        ends: the texts of the tokens that end a text; the first is the eos_token.
        special: texts of further special tokens.
    """
    tokenizer = Tokenizer.from_str(_base())
    found = {*CONTROL.findall(template), *ends, *special, "<bos>"}
    tokenizer.add_special_tokens(sorted(found - set(PLAIN)))
    tokenizer.add_tokens(list(PLAIN))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": ends[0], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"eos_token_id": [tokenizer.token_to_id(text) for text in ends]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return ChatTokenizer(folder)
