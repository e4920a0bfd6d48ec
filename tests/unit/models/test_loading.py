import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, GPT2Config, GPT2LMHeadModel, MistralConfig, Qwen2Config, Qwen3Config

from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError, DataError
from ray_rl.models.loading import (
    attention_name,
    check_checkpoint,
    load_causal_lm,
    load_model_config,
    require_rows,
    resolved_packing,
)
from ray_rl.models.value import check_value_checkpoint, load_value_model
from tests.algorithm import algorithm
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
            "algorithm": algorithm(),
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
    assert resolved_packing(config.train, model_config, accelerator=accelerator) == resolved


@pytest.mark.parametrize(
    ("model_config", "obstacle"),
    [
        (Qwen2Config(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"]), "not full attention"),
        (MistralConfig(sliding_window=16), "not full attention"),
        (BloomConfig(), "attention of its own"),
    ],
)
def test_models_whose_attention_is_not_a_tree_are_padded_and_cannot_share_prefixes(model_config, obstacle):
    assert resolved_packing(run().train, model_config, accelerator="cpu") == "padded"
    with pytest.raises(ConfigError, match=rf"{obstacle}.*set packing=padded"):
        resolved_packing(run(packing="shared_prefix").train, model_config, accelerator="cpu")


def test_windows_may_be_packed_and_an_attention_of_its_own_may_not():
    packed = run(packing="packed").train
    assert resolved_packing(packed, MistralConfig(sliding_window=16), accelerator="cpu") == "packed"
    with pytest.raises(ConfigError, match="packing=packed: the model has an attention of its own"):
        resolved_packing(packed, BloomConfig(), accelerator="cpu")


@pytest.mark.parametrize("model_config", [Qwen2Config(), Qwen3Config(), MistralConfig(sliding_window=None)])
def test_models_of_full_attention_share_prefixes_on_cpu(model_config):
    assert resolved_packing(run().train, model_config, accelerator="cpu") == "shared_prefix"


@pytest.mark.parametrize(
    ("attention", "packing", "name"),
    [("auto", "shared_prefix", "ray_rl_shared_prefix"), ("auto", "packed", "sdpa"), ("eager", "padded", "eager")],
)
def test_the_attention_follows_the_packing(attention, packing, name):
    assert attention_name(run(attention=attention).train, packing=packing, accelerator="cpu") == name


@pytest.fixture(params=[load, lambda folder: check_checkpoint(folder, trust_remote_code=False, key="model.path")])
def opened(request):
    """A checkpoint is opened: its weights are loaded, or only its names and shapes compared."""
    return request.param


def with_weights(folder: Path, change, **settings: object) -> str:
    """A tiny Llama whose checkpoint has other weights than its model."""
    saved(folder, **settings)
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def without(part: str):
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def renamed(prefix: str):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def joined(name: str, *shape: int):
    return lambda weights: weights | {name: torch.ones(shape)}


def same(weights):
    return weights


DAMAGED = {
    "no head, though it is not tied": (same, {"tie_word_embeddings": False}, "has no lm_head.weight: these would be"),
    "no MLP in one layer": (without("1.mlp"), {}, "has no model.layers.1.mlp.down_proj.weight, "),
    "no embeddings": (without("embed"), {}, "has no lm_head.weight, model.embed_tokens.weight"),
    "no last norm": (without("model.norm"), {}, "has no model.norm.weight"),
    "a prefix": (renamed("module."), {}, " more, and module.model.embed_tokens.weight, "),
    "another prefix": (renamed("_orig_mod."), {}, " more, and _orig_mod.model.embed_tokens.weight, "),
    "fewer layers than the model": (same, {"num_hidden_layers": 3}, "has no model.layers.2.input_layernorm.weight, "),
    "more layers than the model": (same, {"num_hidden_layers": 1}, "has model.layers.1.input_layernorm.weight, "),
    "fewer rows than the model": (same, {"vocab_size": 64}, "has other shapes for model.embed_tokens.weight"),
    "a bias that the model leaves out": (
        joined("model.layers.0.self_attn.q_proj.bias", 32),
        {},
        "has model.layers.0.self_attn.q_proj.bias, which the model that config.json describes leaves out",
    ),
    "norms that the model leaves out": (
        joined("model.layers.1.self_attn.q_norm.weight", 8),
        {},
        "has model.layers.1.self_attn.q_norm.weight, which",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_checkpoint_that_is_not_all_of_the_model_is_refused_and_its_first_weights_named(tmp_path, opened, damage):
    change, settings, words = DAMAGED[damage]
    with pytest.raises(DataError) as caught:
        opened(with_weights(tmp_path, change, **settings))
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"model.path: the checkpoint of {tmp_path} has ")
    assert str(caught.value).endswith(
        "use a complete checkpoint of the model, with the config.json that was saved with it"
    )


WHOLE = {
    "tied head": (same, {}),
    "head of its own": (
        lambda weights: weights | {"lm_head.weight": torch.ones(48, 32)},
        {"tie_word_embeddings": False},
    ),
    "without the prefix of the backbone": (
        lambda weights: {name.removeprefix("model."): value for name, value in weights.items()},
        {},
    ),
    "constants of old checkpoints": (joined("model.layers.0.self_attn.rotary_emb.inv_freq", 4), {}),
    "a value head beside it": (joined("v_head.summary.weight", 1, 32), {}),
    "a part for images": (joined("visual.blocks.0.norm1.weight", 8), {}),
    "layers that predict further ahead": (
        joined("model.layers.2.eh_proj.weight", 32, 64),
        {"num_nextn_predict_layers": 1},
    ),
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_whole_checkpoint_is_accepted_whatever_lies_beside_it(tmp_path, opened, what):
    change, settings = WHOLE[what]
    opened(with_weights(tmp_path, change, **settings))


def test_the_critic_is_refused_where_its_backbone_would_be_random(tmp_path):
    folder = with_weights(tmp_path, without("0.mlp"))
    for opened in (
        lambda: check_value_checkpoint(folder, trust_remote_code=False),
        lambda: load_value_model(folder, dtype="float32", attention="sdpa", trust_remote_code=False),
    ):
        with pytest.raises(DataError, match=r"critic.path: the checkpoint of \S+ has no model.layers.0.mlp.down_proj"):
            opened()


@pytest.mark.parametrize(("token_id", "is_refused"), [(47, False), (48, True), (151_668, True)])
def test_a_tokenizer_with_a_token_that_has_no_row_is_refused_with_both_numbers(token_id, is_refused):
    model_config = tiny_llama().config
    with pytest.raises(DataError) if is_refused else nullcontext() as caught:
        require_rows(("<|pad|>", token_id), model_config, folder="m", key="model.path")
    if is_refused:
        assert str(caught.value).startswith(
            f"model.path=m: the tokenizer's token '<|pad|>' has the id {token_id}, and the model has 48 rows of"
        )


@pytest.mark.parametrize("method", ["fp8", "mxfp4", "gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_a_quantised_checkpoint_is_refused_by_what_config_says(tmp_path, method):
    folder = saved(tmp_path, quantization_config={"quant_method": method})
    for refuse in (load, lambda path: check_checkpoint(path, trust_remote_code=False, key="model.path")):
        with pytest.raises(DataError, match=rf"quantised .*{method}.*in bfloat16"):
            refuse(folder)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", None])
def test_a_damaged_file_of_weights_is_named(tmp_path, content):
    folder = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(DataError, match=r"model\.safetensors, [\d,]+ bytes\) is damaged or cut off"):
        load(folder)


def test_a_shard_that_is_missing_is_named(tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(DataError, match=shard.name):
        load(str(tmp_path))


@pytest.mark.parametrize("is_same", [True, False])
def test_a_tied_head_may_be_in_the_checkpoint_if_it_is_the_embedding(tmp_path, is_same):
    folder = saved(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + (0.0 if is_same else 1.0)
    save_file(weights, file, metadata={"format": "pt"})
    if is_same:
        assert torch.equal(load(folder).lm_head.weight, weights["model.embed_tokens.weight"])
        return
    with pytest.raises(DataError, match="tie_word_embeddings: true, but the head in the checkpoint differs"):
        load(folder)
