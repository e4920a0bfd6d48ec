import pytest
import torch

from ray_rl.checkpoint.slices import SliceReader, write_slices
from ray_rl.errors import CheckpointError

WHOLE = torch.arange(10.0)


@pytest.fixture
def folder(tmp_path):
    """A vector of ten elements, cut by three ranks into uneven slices, and one that the second rank has alone."""
    there = tmp_path / "actor"
    write_slices(there / "rank_0.safetensors", [("a", 0, WHOLE[:4])], {"steps": 3, "rank": 0})
    write_slices(there / "rank_1.safetensors", [("a", 4, WHOLE[4:5]), ("b/c", 0, -WHOLE[:2])], {"steps": 3, "rank": 1})
    write_slices(there / "rank_2.safetensors", [("a", 5, WHOLE[5:])], {"steps": 3, "rank": 2})
    return there


@pytest.mark.parametrize("start", range(10))
def test_any_range_is_read_whoever_wrote_its_parts(folder, start):
    reader = SliceReader(folder)
    for stop in range(start + 1, 11):
        assert reader.read("a", start, stop).tolist() == WHOLE[start:stop].tolist()


def test_an_empty_range_is_empty(folder):
    assert SliceReader(folder).read("a", 10, 10).numel() == 0


def test_names_and_states_come_back(folder):
    reader = SliceReader(folder)
    assert "b/c" in reader
    assert "b" not in reader
    assert reader.states["rank_1"] == {"steps": 3, "rank": 1}


def test_bits_survive_in_every_dtype(tmp_path):
    values = {
        "float": torch.tensor([1e-45, -0.0, 3.4e38]),
        "bfloat": torch.tensor([1.5, 2.0]).bfloat16(),
        "state": torch.get_rng_state(),
    }
    write_slices(tmp_path / "rank_0.safetensors", [(name, 0, value) for name, value in values.items()], {})
    reader = SliceReader(tmp_path)
    for name, value in values.items():
        read = reader.read(name, 0, len(value))
        assert read.dtype == value.dtype
        assert read.view(torch.uint8).tolist() == value.view(torch.uint8).tolist()


def test_what_is_missing_is_named_with_its_range(folder):
    (folder / "rank_1.safetensors").unlink()
    reader = SliceReader(folder)
    assert reader.read("a", 0, 4).tolist() == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(CheckpointError, match="elements 4 to 10 of a are missing"):
        reader.read("a", 2, 10)
    with pytest.raises(CheckpointError, match="elements 0 to 1 of b/c are missing"):
        reader.read("b/c", 0, 1)


def test_a_folder_without_slices_and_a_file_that_is_none_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors files"):
        SliceReader(tmp_path)
    (tmp_path / "rank_0.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"rank_0\.safetensors: damaged, or not written by a checkpoint"):
        SliceReader(tmp_path)
