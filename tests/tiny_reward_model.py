"""A reward model small enough to load and run within milliseconds: a random Llama with a head of one number.

Shaped to meet the traps: its tokenizer puts a BOS before whatever it tokenises, and so does its chat template; padding
is the same token as the end of a turn, with which every conversation ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL = ["<|unk|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
WORDS = [*SPECIAL, *"0123456789", *"+?.", "What", "is", "Answer", "with", "a", "number", "the", "sum", "of", "and"]
BOS, END = WORDS.index("<|bos|>"), WORDS.index("<|end|>")
CHAT_TEMPLATE = (
    "<|bos|>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<|{{ m.role }}|> {{ m.content }} <|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT_TOKENS = 64


def write_tiny_reward_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Weights in float32, configuration and tokenizer; `changes` are settings of the LlamaConfig."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": 0.3,  # large enough for attention to matter
        "num_labels": 1,
        "bos_token_id": BOS,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForSequenceClassification(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    write_tiny_tokenizer(folder)
    return folder


def write_tiny_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """One token a word and one a digit."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "unk_token": "<|unk|>",
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
