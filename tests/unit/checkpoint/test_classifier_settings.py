"""Exported classifiers give the same scores in every loader, also where the padding token ends texts."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from ray_rl.checkpoint.classifier_settings import describe_classifier, padding_token
from ray_rl.checkpoint.export_folder import export_run
from ray_rl.checkpoint.export_marks import exported_step, model_folders
from ray_rl.checkpoint.hugging_face import export_models
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.tokenize import ExampleTokenizer
from ray_rl.data.formats.record import Comparison
from ray_rl.data.tokenizer import load_tokenizer
from ray_rl.errors import DataError, UserError
from ray_rl.models.classifier import ScoreModel, load_classifier
from ray_rl.rewards.model.scorer import ModelScorer
from ray_rl.types import Message
from tests.tiny_model import WORDS, write_tiny_model

END = WORDS.index("<|end|>")
CONVERSATIONS = [
    [Message("user", f"What is {a} + {b}?"), Message("assistant", f"Answer {answer}.")]
    for a, b, answer in ((3, 4, "7"), (15, 8, "2 3 with a number"), (9, 9, ""))
]


@pytest.fixture
def source(tmp_path):
    """A model whose padding token is its end token, and ends every conversation."""
    folder = write_tiny_model(tmp_path / "source")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<|end|>"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": END}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|end|>"}))
    return folder


def export(source, to, scored_at, **settings):
    """An export with a head that is large enough for scores to differ."""
    model = load_classifier(
        str(source), scored_at, head_seed=3, dtype="float32", attention="sdpa", trust_remote_code=False
    )
    weights = [
        (name, weight.detach() * (20 if name.startswith("score") else 1)) for name, weight in model.named_parameters()
    ]
    model.load_state_dict(dict(weights), strict=False)
    export_models({"": model}, iter(weights), source=str(source), to=to, step=5, **settings)
    return model.eval()


def rendered(tokenizer, conversation):
    return tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in conversation], tokenize=False
    )


def test_a_reward_model_scores_the_same_in_transformers_and_as_a_judge(source, tmp_path):
    trained = export(source, tmp_path / "export", "end")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    texts = [rendered(tokenizer, conversation) for conversation in CONVERSATIONS]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) == 3
    assert all(batch["input_ids"][i, length - 1] == END for i, length in enumerate(lengths))
    with torch.no_grad():
        hidden = trained.base_model(**batch).last_hidden_state[torch.arange(3), lengths - 1]
        expected = trained.score(hidden)[:, 0]
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
        in_transformers = loaded(**batch).logits[:, 0]
    as_a_judge = judge(tmp_path / "export").scores(CONVERSATIONS)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(in_transformers, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(as_a_judge, expected.numpy(), atol=1e-5)


def judge(folder):
    return ModelScorer.load(
        str(folder),
        micro_batch_tokens=64,
        max_tokens=None,
        dtype="float32",
        attention="sdpa",
        trust_remote_code=False,
    )


def test_a_reward_model_of_plain_text_reads_as_a_judge_what_it_was_trained_on(source, tmp_path):
    trained = export(source, tmp_path / "export", "end", chat=False)
    question, answer = (message.content for message in CONVERSATIONS[0])
    pair = ExampleTokenizer(ChatTokenizer(source), chat=False, rendered=True).example(
        Comparison(question, answer, "wrong"), id="0", where=""
    )
    tokens = torch.tensor([[*pair.prompt_ids, *pair.answers[0].token_ids.tolist()]])
    with torch.no_grad():
        expected = trained.score(trained.base_model(input_ids=tokens).last_hidden_state[:, -1])[0]
    np.testing.assert_allclose(judge(tmp_path / "export").scores(CONVERSATIONS[:1]), expected.numpy(), atol=1e-5)
    export(tmp_path / "export", tmp_path / "chat", "end")  # is trained further, now on conversations
    assert abs(judge(tmp_path / "chat").scores(CONVERSATIONS[:1]) - expected.numpy()) > 1e-3


def test_a_judge_of_plain_text_refuses_what_is_no_question_with_its_answer(source, tmp_path):
    export(source, tmp_path / "export", "end", chat=False)
    turns = [Message("system", "Be brief."), *CONVERSATIONS[0]]
    with pytest.raises(DataError, match=r"conversation 1: the reward model .*export was trained on plain text .* and "):
        judge(tmp_path / "export").scores([CONVERSATIONS[0], turns])


def test_the_members_of_an_ensemble_are_models_in_folders_of_their_own(source, tmp_path):
    heads = [1, 2]
    model = ScoreModel(
        [
            load_classifier(
                str(source), "end", head_seed=seed, dtype="float32", attention="sdpa", trust_remote_code=False
            )
            for seed in heads
        ]
    )
    weights = [(name, weight.detach()) for name, weight in model.named_parameters()]
    run = tmp_path / "run"
    export_models(model.exported, iter(weights), source=str(source), to=run / "export", step=5)
    copy = export_run(run, to=tmp_path / "copy", dtype="bfloat16")
    assert exported_step(copy) == 5
    scores = []
    for folder in model_folders(copy, 2):
        loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
        assert loaded.dtype == torch.bfloat16
        with torch.no_grad():
            scores.append(loaded(input_ids=torch.tensor([[5, 6, END]])).logits.item())
    assert scores[0] != scores[1]
    (run / "export/member_1/config.json").unlink()
    with pytest.raises(UserError, match=r"incomplete, config\.json missing"):
        export_run(run, to=tmp_path / "another copy")


def test_a_model_of_steps_scores_the_same_in_transformers(source, tmp_path):
    trained = export(source, tmp_path / "export", "steps")
    tokens = torch.tensor([[2, 5, 6, END, 7, 8, END]])
    with torch.no_grad():
        loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "export")
        expected = trained.score(trained.base_model(input_ids=tokens).last_hidden_state)
        torch.testing.assert_close(loaded(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)
    assert loaded.config.id2label == {0: "wrong", 1: "right"}


def test_the_padding_token_of_the_export_is_one_that_ends_no_text(source, tmp_path):
    export(source, tmp_path / "export", "end")
    config = json.loads((tmp_path / "export/config.json").read_text())
    pad = WORDS.index("<|user|>")
    assert config["pad_token_id"] == pad
    assert config["eos_token_id"] == END
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert list(config["id2label"]) == ["0"]
    assert AutoTokenizer.from_pretrained(tmp_path / "export").pad_token_id == pad
    assert load_tokenizer(tmp_path / "export").id_of("pad_token") == pad


def test_the_padding_token_is_also_set_in_the_settings_of_the_part_for_text(source):
    model = load_classifier(str(source), "end", head_seed=3, dtype="float32", attention="sdpa", trust_remote_code=False)
    settings = {"text_config": {"pad_token_id": END}}
    describe_classifier(settings, source, model, chat=True)
    assert settings["text_config"]["pad_token_id"] == settings["pad_token_id"] == WORDS.index("<|user|>")


def test_an_export_whose_tokenizer_cannot_be_read_is_written_without_a_padding_token(source, tmp_path):
    (source / "generation_config.json").write_text('{"eos_token_id": "end"}')
    export(source, tmp_path / "export", "end")
    assert json.loads((tmp_path / "export/config.json").read_text())["pad_token_id"] is None


def chosen(source, rows=1000, **settings):
    (source / "special_tokens_map.json").unlink(missing_ok=True)
    file = source / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return padding_token(load_tokenizer(source), rows=rows)


def test_a_padding_token_that_ends_no_text_is_kept(source):
    assert chosen(source, pad_token="<|user|>") == "<|user|>"


def test_the_first_token_of_a_sequence_comes_before_other_special_ones(source):
    assert chosen(source, bos_token="<|assistant|>") == "<|assistant|>"
    assert chosen(source, bos_token="<|end|>") == "<|user|>"


def test_a_token_that_the_template_writes_after_an_answer_is_no_padding(source):
    template = "{% for m in messages %}{{ m.content }}<|user|>.{% endfor %}"
    assert chosen(source, chat_template=template) == "<|assistant|>"


def test_without_a_token_that_ends_no_text_there_is_no_padding(source):
    assert chosen(source, rows=0) is None
