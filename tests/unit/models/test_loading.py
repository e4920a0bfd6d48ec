import json
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, GPT2Config, GPT2LMHeadModel, MistralConfig, Qwen2Config, Qwen3Config

from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError, DataError
from ray_rl.models.loading import attention_name, load_causal_lm, load_model_config, resolved_packing
from tests.unit.models.tiny import tiny_llama


def saved(folder: Path, **changes: object) -> str:
    """A tiny Llama on disk, with these settings in its config.json."""
    tiny_llama().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


def run(*, packing: str = "auto", attention: str = "auto", accelerator: str = "cpu") -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "train": {"packing": packing, "attention": attention},
            "cluster": {"accelerator": accelerator},
        }
    )


def load(folder: str, dtype: str = "float32") -> torch.nn.Module:
    return load_causal_lm(folder, dtype=dtype, attention="sdpa", trust_remote_code=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_in_the_dtype_that_is_asked_for(tmp_path, dtype):
    expected = tiny_llama().state_dict()
    for name, value in load(saved(tmp_path), dtype).state_dict().items():
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(value, expected[name].to(value.dtype))


def test_nothing_drops_out_while_training(tmp_path):
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load(str(tmp_path)).train()
    tokens = torch.arange(6)[None]
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_a_folder_that_is_not_a_model_is_named(tmp_path):
    with pytest.raises(DataError, match="give a folder or a hub name") as caught:
        load_model_config(str(tmp_path), trust_remote_code=False)
    assert str(tmp_path) in str(caught.value)


def test_a_model_without_safetensors_is_refused(tmp_path):
    folder = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be loaded"):
        load(folder)


def test_a_model_that_changes_its_logits_after_the_head_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"final_logit_softcapping=30.0 is not supported"):
        load_model_config(saved(tmp_path, final_logit_softcapping=30.0), trust_remote_code=False)


@pytest.mark.parametrize(
    ("packing", "accelerator", "resolved"),
    [
        ("auto", "cpu", "shared_prefix"),
        ("auto", "gpu", "padded"),  # flash-attn is not installed here
        ("padded", "cpu", "padded"),
        ("packed", "cpu", "packed"),
        ("shared_prefix", "cpu", "shared_prefix"),
    ],
)
def test_prefixes_are_shared_on_cpu_unless_the_configuration_says_otherwise(tmp_path, packing, accelerator, resolved):
    model_config = load_model_config(saved(tmp_path), trust_remote_code=False)
    config = run(packing=packing, accelerator=accelerator)
    assert resolved_packing(config, config.train, model_config) == resolved


@pytest.mark.parametrize(
    ("model_config", "obstacle"),
    [
        (Qwen2Config(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"]), "not full attention"),
        (MistralConfig(sliding_window=16), "not full attention"),
        (BloomConfig(), "attention of its own"),
    ],
)
def test_models_whose_attention_is_not_a_tree_are_padded_and_cannot_share_prefixes(model_config, obstacle):
    assert resolved_packing(run(), run().train, model_config) == "padded"
    with pytest.raises(ConfigError, match=rf"{obstacle}.*set packing=padded"):
        resolved_packing(run(), run(packing="shared_prefix").train, model_config)


def test_windows_may_be_packed_and_an_attention_of_its_own_may_not():
    packed = run(packing="packed").train
    assert resolved_packing(run(), packed, MistralConfig(sliding_window=16)) == "packed"
    with pytest.raises(ConfigError, match="packing=packed: the model has an attention of its own"):
        resolved_packing(run(), packed, BloomConfig())


@pytest.mark.parametrize("model_config", [Qwen2Config(), Qwen3Config(), MistralConfig(sliding_window=None)])
def test_models_of_full_attention_share_prefixes_on_cpu(model_config):
    assert resolved_packing(run(), run().train, model_config) == "shared_prefix"


@pytest.mark.parametrize(
    ("attention", "packing", "name"),
    [("auto", "shared_prefix", "ray_rl_shared_prefix"), ("auto", "packed", "sdpa"), ("eager", "padded", "eager")],
)
def test_the_attention_follows_the_packing(attention, packing, name):
    assert attention_name(run(), run(attention=attention).train, packing=packing) == name
