import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from ray_rl.checkpoint.export_marks import exported_step
from ray_rl.checkpoint.hugging_face import check_export, export_models
from ray_rl.errors import DataError
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(source):
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def trained(model):
    """Names and tensors as a trainer's stream gives them, the tied head once, from memory that is used again."""
    memory = torch.empty(max(parameter.numel() for parameter in model.parameters()))
    for name, parameter in model.named_parameters():
        tensor = memory[: parameter.numel()].view(parameter.shape)
        tensor.copy_(parameter.detach() * 0.5 + 1)
        yield name, tensor


@pytest.fixture
def exported(model, source, tmp_path):
    export_models({"": model}, trained(model), source=str(source), to=tmp_path / "run" / "export", step=7)
    return tmp_path / "run" / "export"


def test_the_folder_holds_the_weights_that_were_given_not_those_of_the_model(exported, model):
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in loaded.named_parameters()] == names
    for (name, parameter), (_, given) in zip(loaded.named_parameters(), trained(model), strict=True):
        assert torch.equal(parameter, given), name


def test_a_tied_head_stays_tied(exported):
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.config.dtype == torch.float32


def test_the_tokenizer_comes_along_file_by_file(exported, source):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (exported / name).read_bytes() == (source / name).read_bytes()
    prompt = [{"role": "user", "content": "What is 3+4?"}]
    first, second = (
        AutoTokenizer.from_pretrained(folder).apply_chat_template(prompt, tokenize=False)
        for folder in (source, exported)
    )
    assert first == second


def test_the_export_names_its_step_and_loads_all_the_same(exported):
    assert exported_step(exported) == 7
    AutoModelForCausalLM.from_pretrained(exported)


def test_a_rank_that_does_not_write_takes_part_and_writes_nothing(model, source, tmp_path):
    asked = []

    def nothing():
        for name, _ in model.named_parameters():
            asked.append(name)
            yield name, None

    export_models({"": model}, nothing(), source=str(source), to=tmp_path / "export", step=7)
    assert len(asked) == len(list(model.named_parameters()))
    assert os.listdir(tmp_path) == []


def test_a_gather_that_fails_leaves_no_folder(model, source, tmp_path):
    def broken():
        yield next(iter(trained(model)))
        raise RuntimeError("connection closed")

    with pytest.raises(RuntimeError):
        export_models({"": model}, broken(), source=str(source), to=tmp_path / "export", step=7)
    assert not (tmp_path / "export").exists()


def test_what_a_torn_export_left_is_not_mixed_in(model, source, tmp_path):
    torn = tmp_path / ".export.partial"
    torn.mkdir()
    (torn / "model-00001-of-00002.safetensors").write_bytes(b"torn")
    export_models({"": model}, trained(model), source=str(source), to=tmp_path / "export", step=7)
    assert [file.name for file in (tmp_path / "export").glob("*.safetensors")] == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["export"]


COMPANIONS = {
    "generation_config.json": '{"eos_token_id": 1, "temperature": 0.9, "top_p": 0.6}',
    "vocab.txt": "a\nb\n",
    "merges.txt": "#version: 0.2\n",
    "tekken.json": "{}",
    "spiece.model": "sentences",
    "qwen.tiktoken": "IQ== 0\n",
    "preprocessor_config.json": "{}",
    "additional_chat_templates/tool_use.jinja": "{{ messages }}",
    "modeling_tiny.py": "VALUE = 1\n",
    "LICENSE": "MIT",
    "bpe.codes": "a b\n",
}
LEFT = {"README.md": "A model.", "pytorch_model.bin": "pickle", "optimizer.pt": "state", ".gitattributes": "*"}


@pytest.fixture
def real(source, tmp_path):
    """A source as people publish them: more files than a tokenizer.json, and settings of its own."""
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    for name, text in (COMPANIONS | LEFT).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    settings = json.loads((folder / "config.json").read_text())
    own = {"attention_dropout": 0.1, "auto_map": {"AutoModelForCausalLM": "modeling_tiny.Tiny"}, "my_field": [1]}
    (folder / "config.json").write_text(json.dumps(settings | own | {"torch_dtype": "bfloat16"}))
    return folder


def test_every_file_of_the_source_but_its_weights_comes_along_as_it_is(real, model, tmp_path):
    """transformers refuses to save this generation_config.json: the run ended with a ValueError after its last step."""
    check_export(str(real))
    export_models({"": model}, trained(model), source=str(real), to=tmp_path / "export", step=7)
    for name in (*COMPANIONS, "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "export" / name).read_bytes() == (real / name).read_bytes(), name
    assert not [name for name in LEFT if (tmp_path / "export" / name).exists()]


def test_the_settings_are_the_sources_own_but_for_the_dtype_of_the_weights(real, model, tmp_path):
    before = json.loads((real / "config.json").read_text())
    export_models({"": model}, trained(model), source=str(real), to=tmp_path / "export", step=7)
    after = json.loads((tmp_path / "export" / "config.json").read_text())
    assert after == before | {"torch_dtype": "float32", "architectures": ["LlamaForCausalLM"]}


def test_an_export_of_before_is_replaced(exported, model, source):
    (exported / "old").touch()
    export_models({"": model}, trained(model), source=str(source), to=exported, step=9)
    assert exported_step(exported) == 9
    assert not (exported / "old").exists()


def test_buffers_that_a_checkpoint_holds_come_along(source, tmp_path):
    """As the bias by which DeepSeek's and GLM's experts are chosen: no optimizer changes it, and it is no parameter."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.model.layers[0].mlp.register_buffer("e_score_correction_bias", torch.tensor([1.5, -2.0]))
    model.model.layers[0].mlp.register_buffer("cache", torch.ones(2), persistent=False)
    export_models({"": model}, trained(model), source=str(source), to=tmp_path / "export", step=1)
    weights = load_file(tmp_path / "export" / "model.safetensors")
    assert weights["model.layers.0.mlp.e_score_correction_bias"].tolist() == [1.5, -2.0]
    assert not [name for name in weights if name.endswith("cache")]


def test_experts_are_exported_under_the_names_that_checkpoints_have(tmp_path):
    """transformers holds them as one matrix; vLLM and everybody else read them one by one."""
    config = MixtralConfig(
        vocab_size=27,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    write_tiny_model(tmp_path / "source")
    MixtralForCausalLM(config).save_pretrained(tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    given = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    export_models({"": model}, iter(given.items()), source=str(tmp_path / "source"), to=tmp_path / "export", step=1)
    before = load_file(tmp_path / "source" / "model.safetensors")
    after = load_file(tmp_path / "export" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("damage", ["{", "[]", None])
def test_a_source_that_could_not_be_exported_is_refused_before_the_run(real, damage):
    if damage is None:
        (real / "config.json").unlink()
    else:
        (real / "config.json").write_text(damage)
    with pytest.raises(DataError, match=r"model.path=\S+: config.json"):
        check_export(str(real))
