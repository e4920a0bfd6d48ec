import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_rl.checkpoint.export_folder import exported_step
from ray_rl.checkpoint.hugging_face import export_policy
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
    export_policy(model, trained(model), source=str(source), to=tmp_path / "run" / "export", step=7)
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

    export_policy(model, nothing(), source=str(source), to=tmp_path / "export", step=7)
    assert len(asked) == len(list(model.named_parameters()))
    assert os.listdir(tmp_path) == []


def test_a_gather_that_fails_leaves_no_folder(model, source, tmp_path):
    def broken():
        yield next(iter(trained(model)))
        raise RuntimeError("connection closed")

    with pytest.raises(RuntimeError):
        export_policy(model, broken(), source=str(source), to=tmp_path / "export", step=7)
    assert not (tmp_path / "export").exists()


def test_what_a_torn_export_left_is_not_mixed_in(model, source, tmp_path):
    torn = tmp_path / ".export.partial"
    torn.mkdir()
    (torn / "model-00001-of-00002.safetensors").write_bytes(b"torn")
    export_policy(model, trained(model), source=str(source), to=tmp_path / "export", step=7)
    assert [file.name for file in (tmp_path / "export").glob("*.safetensors")] == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["export"]
