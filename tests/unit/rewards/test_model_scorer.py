import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    ModernBertDecoderConfig,
    ModernBertDecoderForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from ray_rl.errors import DataError
from ray_rl.metrics.metric import Mean
from ray_rl.rewards.model.scorer import ModelScorer, micro_batches
from ray_rl.types import Message
from tests.tiny_reward_model import (
    BOS,
    CHAT_TEMPLATE,
    CONTEXT_TOKENS,
    END,
    write_tiny_reward_model,
    write_tiny_tokenizer,
)


def conversation(answer: str, question: str = "What is 17+25?") -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


CONVERSATIONS = [
    conversation("42"),
    conversation("the sum of 17 and 25 is a number 4 2 . Answer 42"),
    conversation("the number is 4"),
    [*conversation("42"), *conversation("the sum is 7", "What is 3+4?")],
    conversation("0 1 2 3 4 5 6 7 8 9"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reward_model(tmp_path_factory.mktemp("reward_model"))


def load(path: Path, *, micro_batch_tokens: int = 1000, max_tokens: int | None = None) -> ModelScorer:
    return ModelScorer.load(
        str(path),
        micro_batch_tokens=micro_batch_tokens,
        max_tokens=max_tokens,
        dtype="float32",
        attention="sdpa",
        trust_remote_code=False,
    )


def spied(scorer: ModelScorer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[int]]]:
    """What the model has read so far, a list of tokens a row, padding left out."""
    read: list[list[int]] = []
    forward = scorer._forward
    monkeypatch.setattr(scorer, "_forward", lambda sequences: (read.extend(sequences), forward(sequences))[1])
    return lambda: read


class TestScores:
    def test_one_conversation_has_the_score_that_transformers_gives_it(self, folder):
        scorer = load(folder)
        model, tokenizer = scorer._model, AutoTokenizer.from_pretrained(folder)
        messages = [{"role": message.role, "content": message.content} for message in CONVERSATIONS[1]]
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        model.config.pad_token_id = None  # transformers then reads the last token, as the true padding token is one
        assert scorer.scores([CONVERSATIONS[1]])[0] == pytest.approx(model(**inputs).logits.item(), abs=1e-5)

    @pytest.mark.parametrize("budget", [1, 40, 90, 1000])
    def test_a_score_does_not_depend_on_what_is_scored_with_it(self, folder, budget):
        alone = [load(folder).scores([each])[0] for each in CONVERSATIONS]
        together = load(folder, micro_batch_tokens=budget).scores(CONVERSATIONS)
        assert together.dtype == np.float32
        assert together.tolist() == pytest.approx(alone, abs=1e-5)
        assert np.ptp(together) > 0.1

    def test_scores_come_in_the_order_of_the_conversations(self, folder):
        forwards, backwards = load(folder).scores(CONVERSATIONS), load(folder).scores(CONVERSATIONS[::-1])
        assert forwards.tolist() == pytest.approx(backwards[::-1].tolist(), abs=1e-5)

    def test_no_conversations_have_no_scores(self, folder):
        scores = load(folder).scores([])
        assert scores.shape == (0,) and scores.dtype == np.float32

    def test_two_models_score_differently(self, folder, tmp_path):
        other = load(write_tiny_reward_model(tmp_path, seed=1))
        assert np.abs(other.scores(CONVERSATIONS) - load(folder).scores(CONVERSATIONS)).min() > 1e-3

    def test_a_score_of_nan_leaves_those_of_others_alone(self, folder):
        scorer = load(folder)
        scorer._model.get_input_embeddings().weight[scorer._tokenizer.vocabulary["9"]] = float("nan")
        assert np.isnan(scorer.scores([conversation("42"), conversation("9")])).tolist() == [False, True]

    def test_a_conversation_in_a_pass_of_its_own_has_one_score_whatever_else_is_scored(self, folder):
        scorer = load(folder, micro_batch_tokens=1)
        together = scorer.scores(CONVERSATIONS)
        alone = [scorer.scores([each])[0] for each in CONVERSATIONS]
        assert together.tobytes() == np.array(alone, np.float32).tobytes()

    def test_a_model_that_looks_for_its_padding_token_gets_it(self, tmp_path):
        torch.manual_seed(0)
        config = ModernBertDecoderConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=CONTEXT_TOKENS,
            bos_token_id=BOS,
            cls_token_id=BOS,
            eos_token_id=END,
            sep_token_id=END,
            pad_token_id=60,
            num_labels=1,
            initializer_range=0.3,
        )
        ModernBertDecoderForSequenceClassification(config).save_pretrained(tmp_path)
        write_tiny_tokenizer(tmp_path)
        scorer = load(tmp_path)
        alone = [scorer.scores([each])[0] for each in CONVERSATIONS]
        assert np.ptp(alone) > 1e-3
        assert scorer.scores(CONVERSATIONS).tolist() == pytest.approx(alone, abs=1e-5)


class TestTemplate:
    def test_the_model_s_own_template_writes_the_only_bos_and_no_generation_prompt(self, folder, monkeypatch):
        scorer = load(folder)
        read = spied(scorer, monkeypatch)
        scorer.scores([conversation("42")])
        (tokens,) = read()
        assert tokens.count(BOS) == 1 and tokens[0] == BOS and tokens[-1] == END
        text = "<|bos|> <|user|> What is 1 7 + 2 5 ? <|end|> <|assistant|> 4 2 <|end|>"
        assert [scorer._tokenizer.decode([token], skip_special_tokens=False) for token in tokens] == text.split()

    def test_a_model_without_a_template_is_refused(self, tmp_path):
        write_tiny_reward_model(tmp_path)
        write_tiny_tokenizer(tmp_path, chat_template=None)
        with pytest.raises(DataError) as caught:
            load(tmp_path)
        assert str(caught.value) == (
            f"rewards.paths={tmp_path}: the tokenizer has no chat template; save the template of its training in its "
            "folder as chat_template.jinja, or use another model"
        )

    def test_the_remedy_for_a_missing_template_works(self, folder, tmp_path):
        write_tiny_reward_model(tmp_path)
        write_tiny_tokenizer(tmp_path, chat_template=None)
        (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        assert load(tmp_path).scores(CONVERSATIONS).tolist() == load(folder).scores(CONVERSATIONS).tolist()

    def test_roles_that_the_template_refuses_are_named(self, folder):
        with pytest.raises(DataError, match=r"refuses roles system, user, assistant: no system here; correct"):
            load(folder).scores([[Message("system", "Answer with a number."), *conversation("42")]])

    def test_a_conversation_that_becomes_nothing_is_refused(self, tmp_path):
        write_tiny_reward_model(tmp_path)
        write_tiny_tokenizer(tmp_path, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
        with pytest.raises(DataError, match=r"conversation 1: the chat template of .* gives no tokens"):
            load(tmp_path).scores([conversation("42"), [Message("user", "")]])

    def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(self, tmp_path):
        write_tiny_reward_model(tmp_path, vocab_size=8)
        with pytest.raises(DataError, match=r"has a token \d+, and the model 8 embeddings; use a model"):
            load(tmp_path)

    def test_a_missing_tokenizer_is_named(self, tmp_path):
        write_tiny_reward_model(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "tokenizer_config.json").unlink()
        with pytest.raises(DataError, match=rf"^rewards.paths={tmp_path}: no tokenizer could be loaded: "):
            load(tmp_path)


class TestTruncation:
    def test_what_is_too_long_loses_its_start_and_keeps_its_first_token(self, folder, monkeypatch):
        whole, cut = load(folder), load(folder, max_tokens=10)
        read_whole, read_cut = spied(whole, monkeypatch), spied(cut, monkeypatch)
        whole.scores(CONVERSATIONS[1:2])
        cut.scores(CONVERSATIONS[1:2])
        (tokens,) = read_whole()
        assert len(tokens) > 10
        assert read_cut() == [[BOS, *tokens[-9:]]]

    def test_a_first_token_that_means_nothing_is_cut_too(self, tmp_path, monkeypatch):
        write_tiny_reward_model(tmp_path)
        write_tiny_tokenizer(tmp_path, chat_template=CHAT_TEMPLATE.removeprefix("<|bos|>"))
        scorer = load(tmp_path, max_tokens=3)
        read = spied(scorer, monkeypatch)
        scorer.scores([conversation("42")])
        (tokens,) = read()
        assert scorer._tokenizer.decode(tokens, skip_special_tokens=False).split() == ["4", "2", "<|end|>"]

    def test_a_limit_of_one_leaves_the_last_token(self, folder, monkeypatch):
        scorer = load(folder, max_tokens=1)
        read = spied(scorer, monkeypatch)
        scorer.scores([conversation("42")])
        assert read() == [[END]]

    @pytest.mark.parametrize("max_tokens", [None, 1000])
    def test_nothing_is_longer_than_the_model_s_context(self, folder, monkeypatch, max_tokens):
        scorer = load(folder, max_tokens=max_tokens)
        read = spied(scorer, monkeypatch)
        scorer.scores([conversation("4 " * 100), conversation("4")])
        assert sorted(map(len, read()))[-1] == CONTEXT_TOKENS

    def test_a_model_without_a_known_context_reads_everything(self, tmp_path, monkeypatch):
        scorer = load(write_tiny_reward_model(tmp_path))
        scorer._limit = None
        read = spied(scorer, monkeypatch)
        scorer.scores([conversation("4 " * 100)])
        assert len(read()[0]) > 100

    def test_the_cut_conversations_of_the_last_call_are_counted(self, folder):
        scorer = load(folder, max_tokens=20)
        scorer.scores(CONVERSATIONS)
        assert scorer.metrics() == [Mean("reward/model_truncated_fraction", 3, 5)]
        scorer.scores([conversation("4")])
        assert scorer.metrics() == [Mean("reward/model_truncated_fraction", 0, 1)]

    def test_an_encoder_is_limited_by_its_tokenizer(self, tmp_path):
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=34,  # two more than it can read: its positions start after the padding token
            pad_token_id=END,
            num_labels=1,
            initializer_range=0.3,
        )
        RobertaForSequenceClassification(config).save_pretrained(tmp_path)
        write_tiny_tokenizer(tmp_path, chat_template=CHAT_TEMPLATE.replace("<|end|>", "."))
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"model_max_length": 31}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        scorer = load(tmp_path)
        long, short = conversation("4 " * 100), conversation("4")
        together = scorer.scores([long, short])
        assert together.tolist() == pytest.approx([scorer.scores([each])[0] for each in (long, short)], abs=1e-5)


class TestMicroBatches:
    def test_the_longest_come_first_and_padding_counts(self):
        assert list(micro_batches([3, 9, 4, 5, 1], 10)) == [[1], [3, 2], [0, 4]]

    def test_a_row_over_the_budget_is_alone(self):
        assert list(micro_batches([2, 50, 2], 10)) == [[1], [0, 2]]

    @settings(deadline=None)
    @given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 100))
    def test_every_row_is_there_once_and_within_the_budget(self, lengths, budget):
        batches = list(micro_batches(lengths, budget))
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
