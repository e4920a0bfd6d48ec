"""Tokenizers whose answers are easy to tokenise wrongly."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ray_rl.data.chat import ChatTokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of SmolLM2, as it is."""
QWEN3 = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' "
    "else m.content %}<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Like that of Qwen3: earlier turns lose their thoughts, and without thinking the prompt has an empty thought."""
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
"""Like that of Llama 3: it writes the bos itself, trims, and writes nothing after the end of a turn."""


def _saved(folder: Path, tokenizer: Tokenizer, template: str | None, **settings: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = settings | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ChatTokenizer]:
    """Makes a byte-level tokenizer: a token is a byte, apart from the given merges of two characters, like "bc"."""

    def make(
        template: str | None = SMOLLM2, *, merges: str = "", eos: str = "<|im_end|>", options: dict | None = None
    ) -> ChatTokenizer:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        pairs = [(pair[0], pair[1]) for pair in merges.split()]
        vocabulary = {text: index for index, text in enumerate([*alphabet, *(a + b for a, b in pairs)])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<s>", "<|im_start|>", "<|im_end|>", "</s>"])
        tokenizer.add_special_tokens(["<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>"])
        folder = tmp_path_factory.mktemp("bytes")
        # As in SmolLM2: the token that pads also ends a text.
        _saved(folder, tokenizer, template, eos_token=eos, pad_token=eos, bos_token="<s>")
        return ChatTokenizer(folder, template_options=options)

    return make


@pytest.fixture(scope="session")
def spaced_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A tokenizer in the way of SentencePiece, which writes a space before a text, with Zephyr's template."""
    letters = ["<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyzQ0123456789+?.<|>\n/", "\u25814", "\u258142"]
    merges = [("\u2581", "4"), ("\u25814", "2")]
    tokenizer = Tokenizer(
        models.BPE(vocab={text: index for index, text in enumerate(letters)}, merges=merges, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken("</s>", normalized=False, special=True)])
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return ChatTokenizer(_saved(tmp_path_factory.mktemp("spaced"), tokenizer, template, eos_token="</s>"))
