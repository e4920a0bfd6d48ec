"""Reward models, and transformers in the place of the engine, read the shapes of tokenizers as the library does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.tokenizer import load_tokenizer
from ray_rl.errors import DataError
from ray_rl.rewards.model.reading import ChatReader
from ray_rl.rewards.model.scorer import ModelScorer
from ray_rl.types import Message
from tests.tokenizer_shapes import CORPUS, SHAPES, TEXTS, Shape, in_hub_cache, offline_hub, reference


@pytest.fixture(scope="module")
def model() -> LlamaForSequenceClassification:
    """Knows more tokens than any of the shapes has."""
    config = LlamaConfig(
        vocab_size=1024, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1
    )
    with torch.random.fork_rng(devices=[]):
        return LlamaForSequenceClassification(config)


def scorer(model: LlamaForSequenceClassification, path: str) -> ModelScorer:
    tokenizer = load_tokenizer(path, key="rewards.paths")
    return ModelScorer(model, tokenizer, reader=ChatReader(tokenizer, path=path), path=path, micro_batch_tokens=512)


def read(scorer: ModelScorer, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What the model is given from now on."""
    seen: list[list[int]] = []
    forward = scorer._forward

    def spy(sequences):
        seen.extend(sequences)
        return forward(sequences)

    monkeypatch.setattr(scorer, "_forward", spy)
    return seen


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_reward_model_reads_what_the_library_makes_of_a_conversation(shape, place, model, tmp_path, monkeypatch):
    offline_hub(monkeypatch, tmp_path)
    name = in_hub_cache(shape, tmp_path)
    folder = tmp_path / f"models--acme--{shape.name}" / "blobs"
    judge = scorer(model, name if place == "hub" else str(folder))
    seen = read(judge, monkeypatch)
    judge.scores([[Message("user", TEXTS[0])]])
    rendered = shape.rendered(TEXTS[0]).removesuffix(f"{shape.user}assistant\n")
    assert seen == [reference(folder).encode(rendered, add_special_tokens=False).ids]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_transformers_reads_the_engine_s_folder_as_the_library_does(shape, tmp_path):
    """vLLM loads its tokenizer by AutoTokenizer."""
    ours = load_tokenizer(shape.write(tmp_path / "model"))
    (tmp_path / "engine").mkdir()
    theirs = AutoTokenizer.from_pretrained(ours.save_for_engine(tmp_path / "engine"))
    assert ours.difference(theirs) is None
    assert theirs.eos_token_id == ours.id_of("eos_token")


@pytest.mark.parametrize("shape", SHAPES[:2], ids=lambda shape: shape.name)
def test_the_model_s_own_folder_would_be_read_otherwise(shape, tmp_path):
    """Why the engine is not given that one: a change in transformers would make this fail."""
    ours = load_tokenizer(shape.write(tmp_path))
    assert "in tokenizer.json, and" in ours.difference(AutoTokenizer.from_pretrained(tmp_path))


def with_template(folder: Path, template: object) -> str:
    shape = Shape("t", SHAPES[2].build, user="", end="", settings=(("chat_template", template),))
    return str(shape.write(folder))


def test_a_reward_model_whose_template_wants_parts_gets_them(model, tmp_path, monkeypatch):
    template = "{% for m in messages %}{% for p in m.content %}{{ p['text'] }};{% endfor %}{% endfor %}"
    judge = scorer(model, with_template(tmp_path, template))
    seen = read(judge, monkeypatch)
    judge.scores([[Message("user", "What is 17 + 25?"), Message("assistant", "42")]])
    assert judge._tokenizer.decode(seen[0]) == "What is 17 + 25?;42;"


def test_a_reward_model_whose_template_drops_the_question_is_refused(model, tmp_path):
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    judge = scorer(model, with_template(tmp_path, template))
    with pytest.raises(DataError, match=r"^conversation 1: .* leaves out the text of the user message, '17 \+ 25'"):
        judge.scores([[Message("assistant", "x")], [Message("user", "17 + 25"), Message("assistant", "42")]])


def test_a_reward_model_with_several_templates_needs_a_default(model, tmp_path):
    path = with_template(tmp_path, [{"name": "rag", "template": "{{ messages }}"}])
    with pytest.raises(DataError, match="has the chat templates rag, and none of them is called default"):
        scorer(model, path)


class TestWithoutTokenizerJson:
    """Of these transformers' class is the reference: no library reads their files by itself."""

    def test_sentencepiece_s_own_file_is_read_as_sentencepiece_reads_it(self, tmp_path):
        import sentencepiece

        prefix = tmp_path / "tokenizer"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 20),
            model_prefix=str(prefix),
            vocab_size=400,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
        )
        processor = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
        settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        ours = load_tokenizer(tmp_path)
        for text in ("The answer is 42.", "two numbers?", "x \u4e2d"):
            assert ours.encode(text, special=False) == processor.encode(text)
            assert ours.decode(processor.encode(text)) == processor.decode(processor.encode(text))
        assert ours.id_of("eos_token") == processor.eos_id()
        (tmp_path / "engine").mkdir()
        assert ours.difference(AutoTokenizer.from_pretrained(ours.save_for_engine(tmp_path / "engine"))) is None

    def test_a_list_of_word_pieces_is_read(self, tmp_path):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "answer", "##s", "is", "4", "##2", "."]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        ours = load_tokenizer(tmp_path)
        assert ours.encode("The answers is 42.", special=False) == [5, 6, 7, 8, 9, 10, 11]
        assert ours.decode([5, 6, 7, 8]) == "the answers is"
        assert ChatTokenizer(tmp_path).encode("The answer", chat=False) == (2, 5, 6), "behind it would be [SEP]"

    def test_a_tokenizer_of_its_own_code_is_read_by_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr("sys.path", [*sys.path])
        (tmp_path / "tokenization_mine.py").write_text(OWN_CODE)
        (tmp_path / "letters.txt").write_text("abc !")
        settings = {
            "tokenizer_class": "Letters",
            "auto_map": {"AutoTokenizer": ["tokenization_mine.Letters", None]},
            "eos_token": "</s>",
            "chat_template": "{{ messages[0].content }}!{{ eos_token }}",
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(DataError, match="no tokenizer could be loaded"):
            load_tokenizer(tmp_path)
        ours = ChatTokenizer(tmp_path, trust_remote_code=True)
        (end,) = ours.ends((), (), chat=False).token_ids
        assert ours.encode("ab c", chat=True) == (0, 1, 3, 2, 4, end)
        assert ours.decode((0, 1, 3, 2, 4, end)) == "ab c!"
        assert ours.ends(["</s>"], [], chat=True).token_ids == (end,)
        assert ours.model_tokenizer.save_for_engine(tmp_path / "engine") == tmp_path
        assert ours.model_tokenizer.difference(AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)) is None


OWN_CODE = """
from transformers import PreTrainedTokenizer


class Letters(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "letters.txt"}

    def __init__(self, vocab_file, **kwargs):
        with open(vocab_file) as file:
            self.letters = file.read()
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {letter: index for index, letter in enumerate(self.letters)} | self.added_tokens_encoder

    def _tokenize(self, text):
        return [letter for letter in text if letter in self.letters]

    def _convert_token_to_id(self, token):
        return self.letters.index(token)

    def _convert_id_to_token(self, index):
        return self.letters[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)
"""
