import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ray_rl.errors import ConfigError, DataError
from ray_rl.models.reward_model import has_linear_head, load_reward_model, sequence_scores
from tests.tiny_reward_model import END, write_tiny_reward_model


def load(folder: Path, *, dtype: str = "float32", attention: str = "sdpa") -> PreTrainedModel:
    return load_reward_model(str(folder), dtype=dtype, attention=attention, trust_remote_code=False)


def own_score(model: PreTrainedModel, tokens: list[int]) -> float:
    """transformers' score of one sequence."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits.item()


def batch_scores(model: PreTrainedModel, sequences: list[list[int]], *, pad: int = 0) -> list[float]:
    width = max(map(len, sequences))
    tokens_BL = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens in sequences])
    mask_BL = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in sequences])
    with torch.inference_mode():
        scores_B = sequence_scores(model, tokens_BL, mask_BL)
    assert scores_B.dtype == torch.float32
    return scores_B.tolist()


SEQUENCES = [[1, 7, 9, 5], [1, 8], [1, 6, 6, 11, 12, 3, 9]]


class TestScores:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_a_decoder_s_score_is_the_one_that_transformers_gives_the_sequence_alone(self, tmp_path, attention):
        model = load(write_tiny_reward_model(tmp_path), attention=attention)
        expected = [own_score(model, tokens) for tokens in SEQUENCES]
        assert max(expected) - min(expected) > 0.1
        assert batch_scores(model, SEQUENCES) == pytest.approx(expected, abs=1e-5)

    def test_the_last_token_is_found_by_position_where_it_is_also_the_padding_token(self, tmp_path):
        model = load(write_tiny_reward_model(tmp_path))
        assert model.config.pad_token_id == END
        sequences = [[*tokens, END] for tokens in SEQUENCES]
        with torch.inference_mode():
            hidden = [
                model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1] for tokens in sequences
            ]
            expected = [model.score(state).item() for state in hidden]
        assert batch_scores(model, sequences, pad=END) == pytest.approx(expected, abs=1e-5)
        # transformers reads the token before it.
        assert own_score(model, sequences[0]) == pytest.approx(own_score(model, SEQUENCES[0]), abs=1e-5)
        assert batch_scores(model, sequences)[0] != pytest.approx(own_score(model, sequences[0]), abs=1e-2)

    def test_a_model_without_a_padding_token_scores_batches(self, tmp_path):
        model = load(write_tiny_reward_model(tmp_path, pad_token_id=None))
        expected = [own_score(model, tokens) for tokens in SEQUENCES]
        assert batch_scores(model, SEQUENCES) == pytest.approx(expected, abs=1e-5)

    def test_a_decoder_with_learned_positions_scores_as_transformers_does(self, tmp_path):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=16, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=1, initializer_range=0.3
        )
        GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
        model = load(tmp_path)
        assert has_linear_head(model)
        expected = [own_score(model, tokens) for tokens in SEQUENCES]
        assert batch_scores(model, SEQUENCES) == pytest.approx(expected, abs=1e-5)

    def test_an_encoder_pools_in_its_own_way(self, tmp_path):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=16,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            num_labels=1,
            initializer_range=0.3,
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        model = load(tmp_path)
        assert not has_linear_head(model)
        expected = [own_score(model, tokens) for tokens in SEQUENCES]
        assert batch_scores(model, SEQUENCES) == pytest.approx(expected, abs=1e-5)

    def test_the_head_of_a_bfloat16_model_runs_in_float32(self, tmp_path):
        model = load(write_tiny_reward_model(tmp_path), dtype="bfloat16")
        scores = batch_scores(model, SEQUENCES)
        assert any(torch.tensor(score).bfloat16().item() != score for score in scores)


class TestLoading:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_the_model_is_frozen_in_its_dtype(self, tmp_path, dtype):
        model = load(write_tiny_reward_model(tmp_path), dtype=dtype)
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_nothing_drops_out(self, tmp_path):
        model = load(write_tiny_reward_model(tmp_path, attention_dropout=0.5), attention="eager")
        assert own_score(model, SEQUENCES[2]) == own_score(model, SEQUENCES[2])

    @pytest.mark.parametrize("labels", [2, 3])
    def test_a_model_with_several_labels_is_refused(self, tmp_path, labels):
        write_tiny_reward_model(tmp_path, num_labels=labels)
        with pytest.raises(ConfigError) as caught:
            load(tmp_path)
        assert str(caught.value) == (
            f"rewards.paths={tmp_path}: the model has {labels} labels, but a reward is one number; use a sequence "
            "classification model with num_labels 1"
        )

    def test_a_language_model_is_refused_because_its_head_would_be_random(self, tmp_path):
        config = LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        with pytest.raises(DataError) as caught:
            load(tmp_path)
        assert str(caught.value) == (
            f"rewards.paths: the checkpoint of {tmp_path} has no score.weight, and lm_head.weight instead: these would "
            "be random; use a model that was trained and saved as a sequence classifier with one label"
        )

    def test_a_head_under_another_name_is_refused_and_named(self, tmp_path):
        write_tiny_reward_model(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["v_head.weight"] = weights.pop("score.weight")
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(DataError, match=r"has no score\.weight, and v_head\.weight instead: these would be random"):
            load(tmp_path)

    def test_a_head_of_another_shape_is_refused(self, tmp_path):
        write_tiny_reward_model(tmp_path, num_labels=2)
        path = tmp_path / "config.json"
        settings = json.loads(path.read_text()) | {"id2label": {"0": "a"}, "label2id": {"a": 0}}
        path.write_text(json.dumps(settings))
        with pytest.raises(DataError, match=r"has other shapes for score\.weight: these would be random"):
            load(tmp_path)

    def test_many_missing_weights_are_counted(self, tmp_path):
        write_tiny_reward_model(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        kept = {name: value for name, value in weights.items() if "layers.0" not in name}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(DataError, match=r"has no model\.layers\.0\.[^:]* and 5 more: these would be random"):
            load(tmp_path)

    def test_pickled_weights_are_not_read(self, tmp_path):
        write_tiny_reward_model(tmp_path)
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(DataError, match=r"cannot be loaded .*safetensors"):
            load(tmp_path)

    def test_a_folder_that_is_not_a_model_is_named(self, tmp_path):
        with pytest.raises(DataError, match=f"rewards.paths={tmp_path}: cannot be loaded"):
            load(tmp_path)

    def test_an_encoder_decoder_is_refused(self, tmp_path):
        BartConfig(num_labels=1).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"is an encoder-decoder \(bart\).*use a decoder or an encoder"):
            load(tmp_path)
