import json

import pytest

from ray_rl.catalog.models import KNOWN_SHAPES, SMOLLM2_135M, find_shape
from ray_rl.catalog.shapes import shape_from_settings
from ray_rl.config.adapter import Lora
from ray_rl.planner.adapters import Adapters

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352),
        ("Qwen/Qwen2.5-72B", 72_706_203_648),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_the_parameters_of_a_known_model_are_those_of_its_checkpoint(name, parameters):
    assert KNOWN_SHAPES[name].parameters == parameters


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "tie_word_embeddings": True},
        {"model_type": "qwen3", "head_dim": 8, "attention_bias": True},
    ],
    ids=["llama", "llama with biases", "mistral", "qwen2", "qwen3", "qwen3 with biases"],
)
def test_the_formula_counts_what_transformers_builds(settings):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    settings = SMALL | settings
    config = AutoConfig.for_model(**settings, num_labels=1)
    shape = shape_from_settings(settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        scorer = AutoModelForSequenceClassification.from_config(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.scorer_parameters == sum(p.numel() for p in scorer.parameters())


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_are_as_many_as_peft_adds_to_the_matrices_of_the_layers(targets):
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoConfig, AutoModel

    settings = SMALL | {"model_type": "qwen2"}
    shape = shape_from_settings(settings)
    names = list(shape.linears) if targets == "all-linear" else targets
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**settings))
        inject_adapter_in_model(LoraConfig(r=3, target_modules=names), model)
    added = sum(each.numel() for name, each in model.named_parameters() if ".lora_" in name)
    assert added == Adapters(shape, Lora(rank=3), tuple(names)).parameters


def test_a_model_folder_is_read_and_a_packaged_model_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "llama"}))
    assert find_shape(str(tmp_path)).layers == 2
    assert find_shape("smollm2-135m-instruct") == SMOLLM2_135M


@pytest.mark.parametrize("settings", [{"model_type": "mamba"}, {"model_type": "llama", "hidden_size": None}, {}])
def test_other_models_are_not_known(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | settings))
    assert find_shape(str(tmp_path)) is None


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_folder_without_a_readable_configuration_is_not_known(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert find_shape(str(tmp_path)) is None


def test_engines_may_be_as_wide_as_the_heads_can_be_shared():
    assert KNOWN_SHAPES["Qwen/Qwen2.5-7B"].tensor_parallel_sizes() == [1, 2, 4, 28]
    assert SMOLLM2_135M.tensor_parallel_sizes() == [1, 3, 9]
