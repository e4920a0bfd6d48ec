import json

import torch
from safetensors.torch import load_file

from ray_rl.checkpoint.weight_files import write_weights

GROUPS = [{"a": torch.ones(4), "b": torch.zeros(4)}, {"c": torch.full((8,), 2.0)}, {"d": torch.ones(1)}]


def test_little_is_one_file_without_an_index(tmp_path):
    write_weights(tmp_path, GROUPS)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == {"a", "b", "c", "d"}


def test_much_is_several_files_with_an_index_of_every_name(tmp_path):
    write_weights(tmp_path, iter(GROUPS), file_bytes=32)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second, third = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
    assert index["weight_map"] == {"a": first, "b": first, "c": second, "d": third}
    assert index["metadata"]["total_size"] == 68
    assert sorted(file.name for file in tmp_path.iterdir()) == [first, second, third, "model.safetensors.index.json"]
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)


def test_no_more_is_asked_for_than_fits_into_one_file_before_it_is_written(tmp_path):
    def groups():
        yield GROUPS[0]
        yield GROUPS[1]
        assert (tmp_path / ".part-00001.safetensors").is_file()
        yield GROUPS[2]

    write_weights(tmp_path, groups(), file_bytes=32)
