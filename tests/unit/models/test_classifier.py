"""Classifiers under training: their heads, and the states that they score."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from ray_rl.batching.encoding import encode
from ray_rl.batching.micro_batches import Tree
from ray_rl.batching.pack_examples import pack_examples
from ray_rl.errors import ConfigError, DataError
from ray_rl.models.classifier import ScoreModel, classifier_skeleton, load_classifier
from ray_rl.types import Answer, Example
from tests.unit.models.tiny import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language_model")
    tiny_llama().save_pretrained(folder)
    return str(folder)


def load(folder, scored_at="end", *, head_seed=0, dtype="float32", attention="eager"):
    return load_classifier(
        folder, scored_at, head_seed=head_seed, dtype=dtype, attention=attention, trust_remote_code=False
    )


ANSWERS = ([5, 6, 7], [8], [9, 9, 30, 4])


def examples(trained):
    return [
        Example(id=str(i), prompt_ids=(3, 4 + i), answers=(Answer(np.array(tokens, np.int32), np.array(mask)),))
        for i, (tokens, mask) in enumerate(zip(ANSWERS, trained, strict=True))
    ]


EVERY = examples([[True] * len(tokens) for tokens in ANSWERS])
MICRO = (Tree(2, (2,)), Tree(0, (0,)), Tree(1, (1,)))


def scores(classifier, batch, packing):
    """By (row, time) of the loss token."""
    encoded = encode(batch, MICRO, packing=packing)
    with torch.no_grad():
        values = ScoreModel([classifier])(encoded.inputs)[0]
    assert values.dtype == torch.float32
    return {
        (int(row), int(time)): float(value)
        for row, time, value in zip(encoded.row_N, encoded.time_N, values, strict=True)
    }


def test_a_language_model_gets_the_same_small_random_head_for_the_same_seed(folder):
    first, again, other = load(folder), load(folder), load(folder, head_seed=1)
    assert isinstance(first, LlamaForSequenceClassification)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert first.score.weight.shape == (1, 32)
    assert first.score.bias is None
    assert 0.01 < first.score.weight.std().item() < 0.03
    for name, weight in tiny_llama().model.named_parameters():
        assert torch.equal(first.model.get_parameter(name), weight), name


def test_a_head_for_steps_has_two_labels_and_a_bias_of_0(folder):
    model = load(folder, "steps")
    assert isinstance(model, LlamaForTokenClassification)
    assert model.score.weight.shape == (2, 32)
    assert model.score.bias.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("packing", "attention"), [("padded", "eager"), ("shared_prefix", "ray_rl_shared_prefix")])
def test_the_score_of_an_answer_is_that_of_transformers_at_its_last_token(folder, packing, attention):
    found = scores(load(folder, attention=attention), pack_examples(EVERY, loss_at="end"), packing)
    own = load(folder)
    own.score = torch.nn.Linear(32, 1, bias=False)
    own.score.weight = load(folder).score.weight
    with torch.no_grad():
        expected = [
            float(own(input_ids=torch.tensor([[3, 4 + i, *tokens]])).logits) for i, tokens in enumerate(ANSWERS)
        ]
    assert [found[row, len(tokens)] for row, tokens in enumerate(ANSWERS)] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


@pytest.mark.parametrize(("packing", "attention"), [("padded", "eager"), ("shared_prefix", "ray_rl_shared_prefix")])
def test_the_score_of_a_step_is_the_log_odds_at_its_last_token(folder, packing, attention):
    trained = [[False, True, True], [True], [True, False, False, False]]
    found = scores(load(folder, "steps", attention=attention), pack_steps(trained), packing)
    own = load(folder, "steps").eval()
    with torch.no_grad():
        for row, tokens in enumerate(ANSWERS):
            logits = own(input_ids=torch.tensor([[3, 4 + row, *tokens]])).logits[0]
            for time in np.flatnonzero(trained[row]):
                wrong, right = logits[2 + time].tolist()
                assert found.pop((row, int(time) + 1)) == pytest.approx(right - wrong, abs=1e-5)
    assert not found


def pack_steps(trained):
    given = examples(trained)
    return pack_examples(
        [
            Example(
                id=example.id,
                prompt_ids=example.prompt_ids,
                answers=example.answers,
                step_labels=np.ones(sum(mask), np.float32),
            )
            for example, mask in zip(given, trained, strict=True)
        ],
        loss_at="steps",
    )


@pytest.mark.parametrize(
    ("scored_at", "auto_class"),
    [("end", AutoModelForSequenceClassification), ("steps", AutoModelForTokenClassification)],
)
def test_a_classifier_is_loaded_with_its_own_head(folder, tmp_path, scored_at, auto_class):
    source = auto_class.from_pretrained(folder, num_labels=1 if scored_at == "end" else 2)
    source.save_pretrained(tmp_path)
    model = load(str(tmp_path), scored_at, head_seed=7)
    assert type(model) is type(source)
    for name, weight in source.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
    names = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    skeleton = classifier_skeleton(str(tmp_path), scored_at, trust_remote_code=False)
    assert {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()} == names


@pytest.mark.parametrize("scored_at", ["end", "steps"])
def test_the_skeleton_has_the_names_and_shapes_of_the_loaded_model(folder, scored_at):
    skeleton = classifier_skeleton(folder, scored_at, trust_remote_code=False)
    assert all(weight.is_meta for weight in skeleton.parameters())
    expected = {name: tuple(weight.shape) for name, weight in load(folder, scored_at).named_parameters()}
    assert {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()} == expected


def test_the_head_computes_in_float32_where_the_weights_are_bfloat16(folder):
    model = load(folder, dtype="bfloat16")
    hidden = torch.randn(3, 32, dtype=torch.bfloat16)
    expected = hidden.float() @ model.score.weight.float().T
    assert model.score(hidden).dtype == torch.float32
    assert torch.equal(model.score(hidden), expected)


@pytest.mark.parametrize(
    ("packing", "attention", "dtype"),
    [("shared_prefix", "ray_rl_shared_prefix", torch.float32), ("padded", "eager", torch.bfloat16)],
)
def test_layers_see_a_float32_residual_with_shared_prefixes_alone(folder, packing, attention, dtype):
    model, seen = load(folder, dtype="bfloat16", attention=attention), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    scores(model, pack_examples(EVERY, loss_at="end"), packing)
    assert seen == [dtype] * 2


def test_nothing_drops_out(folder, tmp_path):
    source = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    source.config.attention_dropout = 0.5
    source.save_pretrained(tmp_path)
    model, batch = load(str(tmp_path)).train(), pack_examples(EVERY, loss_at="end")
    assert scores(model, batch, "padded") == scores(model, batch, "padded")


def test_a_classifier_with_other_labels_is_refused(folder, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the model has 3 labels, and 1 are trained; start from a language model"):
        load(str(tmp_path))


def test_a_classifier_without_its_head_is_refused(folder, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["score.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"has no score\.weight"):
        load(str(tmp_path))


def test_an_encoder_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the head of BertForSequenceClassification is not one linear"):
        load(str(tmp_path))
