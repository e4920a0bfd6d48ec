import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ray_rl.catalog.weight_files import INDEX, linear_layers, weight_file_problems, weights_digest


@pytest.fixture
def folder(tmp_path):
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def problems(folder):
    return list(weight_file_problems(folder))


def test_what_safetensors_writes_is_whole(folder):
    assert problems(folder) == []


def test_a_folder_without_safetensors_is_left_to_the_loader(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    assert problems(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 20])
def test_a_file_that_was_cut_off_is_found(folder, cut):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert problems(folder) == [
        f"model.safetensors has {len(whole) - cut} bytes, and its header describes {len(whole)}"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes and no header of safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "has 43 bytes and no header of safetensors"),
        (b"\x03" + bytes(7) + b"[1]", "has a header that is not a JSON object"),
        (b"\x03" + bytes(7) + b"{1}", "has a header that is not a JSON object"),
        (b"\x08" + bytes(7) + b'{"a": 1}', "has a header without the offsets of its tensors"),
    ],
)
def test_what_is_no_safetensors_file_is_found(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    assert problems(folder) == [f"model.safetensors {message}"]


def test_a_shard_that_the_index_names_must_be_there(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "c": "more.safetensors"}}))
    assert problems(folder) == [f"{INDEX} names more.safetensors, not in the folder"]
    (folder / INDEX).write_text("{")
    assert problems(folder) == [f"{INDEX} is not a JSON object with a weight_map"]


def digest_after(folder: Path, name: str, change) -> tuple[str | None, str | None]:
    """Digests of two tensors of 64 KiB, and of what a change of the file's bytes makes of them."""
    folder.mkdir()
    header = {
        tensor: {"dtype": "U8", "shape": [65536], "data_offsets": [65536 * i, 65536 * (i + 1)]}
        for i, tensor in enumerate("ab")
    }
    text = json.dumps(header).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text + bytes(2 * 65536))
    file = folder / name
    file.write_bytes(content)
    before = weights_digest(folder)
    change(content, 8 + len(text))
    file.write_bytes(content)
    return before, weights_digest(folder)


@pytest.mark.parametrize("at", [0, 1023, 32768, 65535, 65536, 2 * 65536 - 1])
def test_a_digest_sees_a_byte_at_the_start_in_the_middle_and_at_the_end_of_each_tensor(tmp_path, at):
    def change(content, data):
        content[data + at] = 1

    before, after = digest_after(tmp_path / "model", "model.safetensors", change)
    assert before is not None
    assert after not in (None, before)


def test_a_digest_is_of_the_content_alone_and_there_is_none_of_what_is_not_whole(tmp_path):
    before, after = digest_after(tmp_path / "model", "model.safetensors", lambda content, data: None)
    assert before == after
    assert before.startswith("blake2b-sampled:")
    _, torn = digest_after(tmp_path / "torn", "model.safetensors", lambda content, data: content.pop())
    assert torn is None
    assert weights_digest(tmp_path) is None


def test_the_linear_layers_are_the_matrices_of_the_decoder_without_norms_embeddings_and_head(tmp_path):
    vectors = ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.input_layernorm.weight"]
    inside = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]
    outside = ["model.embed_tokens.weight", "lm_head.weight", "scale"]
    save_file({name: torch.zeros(2) for name in vectors}, tmp_path / "model-1.safetensors")
    save_file({name: torch.zeros(2, 2) for name in inside + outside}, tmp_path / "model-2.safetensors")
    assert linear_layers(tmp_path) == ("down_proj", "q_proj")


def test_a_folder_without_whole_files_has_no_linear_layers(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"anything")
    assert linear_layers(tmp_path) == ()
