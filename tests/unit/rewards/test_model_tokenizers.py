"""Reward models, and transformers in the place of the engine, read the shapes of tokenizers as the library does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from ray_rl.data.tokenizer import load_tokenizer
from ray_rl.errors import ConfigError, DataError
from ray_rl.rewards.model_scorer import ModelScorer
from ray_rl.types import Message
from tests.tokenizer_shapes import SHAPES, TEXTS, Shape, in_hub_cache, offline_hub, reference


@pytest.fixture(scope="module")
def model() -> LlamaForSequenceClassification:
    """Knows more tokens than any of the shapes has."""
    config = LlamaConfig(
        vocab_size=1024, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1
    )
    with torch.random.fork_rng(devices=[]):
        return LlamaForSequenceClassification(config)


def scorer(model: LlamaForSequenceClassification, path: str) -> ModelScorer:
    return ModelScorer(model, load_tokenizer(path, key="reward.paths"), path=path, micro_batch_tokens=512)


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
    assert "by tokenizer.json, and" in ours.difference(AutoTokenizer.from_pretrained(tmp_path))


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
    with pytest.raises(ConfigError, match="has the chat templates rag, and none of them is called default"):
        scorer(model, path)
