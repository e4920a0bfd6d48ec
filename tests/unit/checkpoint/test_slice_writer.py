import threading

import pytest
import torch

from ray_rl.checkpoint import slice_writer
from ray_rl.checkpoint.slice_writer import SliceWriter
from ray_rl.checkpoint.slices import SliceReader, write_slices
from ray_rl.checkpoint.tensors import save_tensors
from ray_rl.errors import CheckpointError
from tests.room import room_for

PAGE = 4096


def wait(writer):
    while not writer.is_written():
        threading.Event().wait(0.01)


def test_what_changes_after_the_copy_is_not_in_the_file(tmp_path):
    writer, live = SliceWriter(), torch.ones(4)
    writer.write(tmp_path / "actor" / "rank_0.safetensors", [("a", 0, live)], {"steps": 2})
    live.zero_()
    wait(writer)
    reader = SliceReader(tmp_path / "actor")
    assert reader.read("a", 0, 4).tolist() == [1.0] * 4
    assert reader.states == {"rank_0": {"steps": 2}}


def test_it_is_written_beside_whoever_asks_and_one_file_at_a_time(tmp_path, monkeypatch):
    may_write = threading.Event()

    def slowly(path, slices, state):
        assert may_write.wait(timeout=30)
        write_slices(path, slices, state)

    monkeypatch.setattr(slice_writer, "write_slices", slowly)
    writer = SliceWriter()
    assert writer.is_written()
    writer.write(tmp_path / "rank_0.safetensors", [("a", 0, torch.ones(1))], {})
    assert not writer.is_written()
    with pytest.raises(CheckpointError, match="still being written"):
        writer.write(tmp_path / "rank_1.safetensors", [("a", 0, torch.ones(1))], {})
    may_write.set()
    wait(writer)
    writer.write(tmp_path / "rank_1.safetensors", [("a", 0, torch.ones(1))], {})
    wait(writer)


def test_a_file_system_that_refuses_is_an_error_for_the_one_who_asks_and_the_next_write_may_try(tmp_path):
    writer = SliceWriter()
    with room_for(PAGE), pytest.raises(CheckpointError, match=r"rank_0.safetensors: .*File too large.*then resume"):
        writer.write(tmp_path / "rank_0.safetensors", [("a", 0, torch.ones(10_000))], {})
        wait(writer)
    writer.write(tmp_path / "rank_0.safetensors", [("a", 0, torch.ones(10))], {})
    wait(writer)


def test_the_error_of_the_system_is_passed_on_with_its_reason(tmp_path):
    with room_for(PAGE), pytest.raises(CheckpointError, match="File too large"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(10_000)})
