"""Tokenizers of the shapes that published models have, small enough to be built within milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The answer is 42. Therefore, 17 + 25 = 42; what is the sum of the two numbers?",
    "def answer(x):\n    return x ** 2\n\nUse two  spaces, and a tab.",
    "Stra\u00dfe, caf\u00e9, na\u00efve, \u6570\u5b66, \u043f\u0440\u0438\u0432\u0435\u0442 user assistant",
]
TEXTS = (
    "The answer is 42.\n\nTherefore, 17 + 25 = 42;  two  spaces\tand a tab.",
    "caf\u00e9 na\u00efve Stra\u00dfe \u6570\u5b66 \u043f\u0440\u0438\u0432\u0435\u0442",
    " leading and trailing ",
    "x",
)
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
THREE_DIGITS = r"\p{N}{1,3}"


@dataclass(frozen=True)
class Shape:
    """One kind of tokenizer, and what its model says of it."""

    name: str
    build: Callable[[], Tokenizer]
    user: str
    """Token before what a user says; also before an answer, where the model has one token for both."""
    end: str
    """Token behind a turn."""
    bos: str | None = None
    eos: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    """Further ones of tokenizer_config.json."""
    model_type: str = "llama"
    generation_eos: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """Chat template of the shape."""
        bos = "{{ bos_token }}" if self.bos else ""
        return (
            bos
            + "{% for m in messages %}"
            + f"{self.user}{{{{ m['role'] }}}}\n{{{{ m['content'] }}}}{self.end}"
            + "{% endfor %}{% if add_generation_prompt %}"
            + f"{self.user}assistant\n"
            + "{% endif %}"
        )

    def rendered(self, text: str) -> str:
        """What the template makes of one user message, by hand. A line end behind a block is not written."""
        return f"{self.bos or ''}{self.user}user\n{text}{self.end}{self.user}assistant\n"

    def write(self, folder: Path) -> Path:
        """The files of a model, without its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = self.build()
        tokenizer.save(str(folder / "tokenizer.json"))
        named = {"bos_token": self.bos, "eos_token": self.eos, "chat_template": self.template}
        settings = {key: value for key, value in named.items() if value is not None} | dict(self.settings)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "config.json").write_text(json.dumps({"model_type": self.model_type}))
        eos = [tokenizer.token_to_id(token) for token in self.generation_eos]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos} if eos else {}))
        return folder


def in_hub_cache(shape: Shape, cache: Path) -> str:
    """The shape as a snapshot of a hub's cache, with links to blobs as the hub's library leaves it; its name."""
    repository = cache / f"models--acme--{shape.name}"
    blobs = shape.write(repository / "blobs")
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return f"acme/{shape.name}"


def offline_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Makes `cache` the only hub that there is."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def reference(folder: Path) -> Tokenizer:
    """tokenizer.json as the `tokenizers` library reads it, without a limit on length."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _bpe(
    pre_tokenizer: Any, decoder: Any, *, normalizer: Any = None, alphabet: list[str] | None = None, **model: Any
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet or [], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_level(*splits: Any, normalizer: Any = None) -> Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)
    chain = pre_tokenizers.Sequence([*splits, byte_level]) if splits else byte_level
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _bpe(chain, decoders.ByteLevel(), normalizer=normalizer, alphabet=alphabet)


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _around(tokenizer: Tokenizer, form: str) -> Tokenizer:
    """Puts special tokens around a text: `form` is such as "<s> $A"."""
    names = [name for name in form.split() if name != "$A"]
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    return tokenizer


def _with(tokenizer: Tokenizer, special: list[str], plain: list[str] | None = None) -> Tokenizer:
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain or [])
    return tokenizer


def _byte_fallback(*, prefix: bool) -> Tokenizer:
    """SentencePiece's BPE as it is published for `tokenizers`: spaces are lower blocks, and unknown text is bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for word in ("\u2581The", "\u2581answer", "\u2581is", "4", "2", ".", "\n", "user", "assistant"):
        for length in range(1, len(word) + 1):
            vocabulary.setdefault(word[length - 1], len(vocabulary))
            vocabulary.setdefault(word[:length], len(vocabulary))
            if length > 1:
                merges.append((word[: length - 1], word[length - 1]))
    model = models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _unigram(normalizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return tokenizer


def _llama_label() -> Tokenizer:
    special = ["<s>", "</s>", "<|User|>", "<|end|>"]
    return _around(_with(_byte_level(), special, ["<think>", "</think>"]), "<s> $A")


def _llama3() -> Tokenizer:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|header|>", "<|eot_id|>"]
    special += [f"<|reserved_special_token_{index}|>" for index in range(252)]
    return _around(_with(_byte_level(_split(THREE_DIGITS), _split(GPT2_WORDS)), special), "<|begin_of_text|> $A")


def _qwen() -> Tokenizer:
    tokenizer = _byte_level(_split(GPT2_WORDS), normalizer=normalizers.NFC())
    plain = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    return _with(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], plain)


def _t5() -> Tokenizer:
    return _around(_with(_unigram(normalizers.NFKC()), ["<extra_id_0>", "<extra_id_1>"]), "$A </s>")


def _limited() -> Tokenizer:
    tokenizer = _with(_unigram(normalizers.Nmt()), ["<turn>", "<end_of_turn>"])
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(pad_id=3, pad_token="<pad>", length=16)
    return _around(tokenizer, "<s> $A </s>")


def _bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[TURN]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _around(tokenizer, "[CLS] $A [SEP]")


def _phi() -> Tokenizer:
    tokenizer = _byte_fallback(prefix=True)
    tokenizer.add_special_tokens([AddedToken(token, rstrip=True) for token in ("<|user|>", "<|end|>")])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def _deepseek() -> Tokenizer:
    names = [
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<\uff5cUser\uff5c>",
    ]
    tokenizer = _byte_level(_split(THREE_DIGITS), _split("[\u4e00-\u9fa5]+"), _split(GPT2_WORDS))
    return _around(_with(tokenizer, names), f"{names[0]} $A")


SHAPES = [
    Shape(
        "distilled-llama",
        _llama_label,
        user="<|User|>",
        end="</s>",
        bos="<s>",
        eos="</s>",
        settings=(("tokenizer_class", "LlamaTokenizerFast"), ("legacy", True), ("pad_token", "</s>")),
    ),
    Shape(
        "distilled-qwen3",
        _llama_label,
        user="<|User|>",
        end="<|end|>",
        bos="<s>",
        eos="<|end|>",
        settings=(("tokenizer_class", "LlamaTokenizer"), ("add_bos_token", True)),
        model_type="qwen3",
    ),
    Shape(
        "llama3",
        _llama3,
        user="<|header|>",
        end="<|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        settings=(("tokenizer_class", "PreTrainedTokenizerFast"),),
        generation_eos=("<|end_of_text|>", "<|eot_id|>"),
    ),
    Shape(
        "gpt2",
        lambda: _with(_byte_level(), ["<|endoftext|>"], ["<|turn|>"]),
        user="<|turn|>",
        end="<|endoftext|>",
        eos="<|endoftext|>",
        settings=(("pad_token", "<|endoftext|>"), ("tokenizer_class", "GPT2Tokenizer")),
        model_type="gpt2",
    ),
    Shape(
        "qwen-base",
        _qwen,
        user="<|im_start|>",
        end="<|im_end|>",
        eos="<|endoftext|>",
        settings=(("tokenizer_class", "Qwen2Tokenizer"), ("bos_token", None)),
        model_type="qwen2",
    ),
    Shape(
        "llama2",
        lambda: _around(_with(_byte_fallback(prefix=True), ["<s>", "</s>"], ["[INST]"]), "<s> $A"),
        user="[INST]",
        end=" </s>",
        bos="<s>",
        eos="</s>",
        settings=(("tokenizer_class", "LlamaTokenizer"), ("clean_up_tokenization_spaces", True)),
    ),
    Shape(
        "gemma",
        lambda: _around(
            _with(_byte_fallback(prefix=False), ["<s>", "</s>", "<start_of_turn>", "<end_of_turn>"]), "<s> $A"
        ),
        user="<start_of_turn>",
        end="<end_of_turn>",
        bos="<s>",
        eos="</s>",
        settings=(("tokenizer_class", "GemmaTokenizer"),),
        model_type="gemma3_text",
    ),
    Shape(
        "t5",
        _t5,
        user="<extra_id_0>",
        end="<extra_id_1>",
        eos="</s>",
        settings=(("tokenizer_class", "T5Tokenizer"), ("unk_token", "<unk>"), ("pad_token", "<pad>")),
        model_type="t5",
    ),
    Shape(
        "limited",
        _limited,
        user="<turn>",
        end="<end_of_turn>",
        bos="<s>",
        eos="</s>",
        settings=(("tokenizer_class", "XLMRobertaTokenizer"), ("unk_token", "<unk>"), ("pad_token", "<pad>")),
        model_type="xlm-roberta",
    ),
    Shape(
        "bert",
        _bert,
        user="[TURN]",
        end="[SEP]",
        eos="[SEP]",
        settings=(("tokenizer_class", "BertTokenizer"), ("cls_token", "[CLS]"), ("unk_token", "[UNK]")),
        model_type="bert",
    ),
    Shape(
        "phi",
        _phi,
        user="<|user|>",
        end="<|end|>",
        bos="<s>",
        eos="</s>",
        settings=(("tokenizer_class", "LlamaTokenizer"), ("add_eos_token", False)),
        model_type="phi3",
    ),
    Shape(
        "deepseek",
        _deepseek,
        user="<\uff5cUser\uff5c>",
        end="<\uff5cend\u2581of\u2581sentence\uff5c>",
        bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        eos="<\uff5cend\u2581of\u2581sentence\uff5c>",
        settings=(("tokenizer_class", "LlamaTokenizerFast"), ("add_bos_token", True), ("add_eos_token", False)),
        model_type="deepseek_v3",
    ),
]
"""Twelve."""
