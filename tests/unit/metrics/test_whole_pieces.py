"""What does not fit is not written at all."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from ray_rl.errors import RecordError
from ray_rl.metrics.sinks import JsonlSink, RecordSink, RolloutRecords, TensorBoardSink
from ray_rl.metrics.trace import TraceWriter
from ray_rl.metrics.whole_pieces import PieceFile, write_whole
from tests.room import room_for


def test_a_piece_that_fits_only_in_part_is_taken_back_and_the_next_one_that_fits_is_written(tmp_path):
    path = tmp_path / "file"
    file = PieceFile(path, keep=True)
    file.append(b"first\n")
    with room_for(10):
        with pytest.raises(
            RecordError, match=rf"^cannot write {path}: File too large; [\d.]+ MiB are free there. Make"
        ):
            file.append(b"too long for it\n")
        assert path.read_bytes() == b"first\n"
        file.append(b"2nd\n")
    file.close()
    assert path.read_bytes() == b"first\n2nd\n"


def test_what_a_piece_would_have_replaced_stays(tmp_path):
    path = tmp_path / "file"
    file = PieceFile(path, keep=True)
    file.append(b"[1]")
    with room_for(8), pytest.raises(RecordError):
        file.append(b", 2222222]", over=b"]")
    assert path.read_bytes() == b"[1]"
    file.append(b", 2]", over=b"]")
    file.close()
    assert path.read_bytes() == b"[1, 2]"


def test_a_whole_file_is_there_whole_or_not_at_all(tmp_path):
    with room_for(100), pytest.raises(RecordError):
        write_whole(tmp_path / "file", (b"line\n" for _ in range(50)))
    assert list(tmp_path.iterdir()) == []
    write_whole(tmp_path / "file", (b"line\n" for _ in range(50)))
    assert (tmp_path / "file").read_bytes() == b"line\n" * 50


def test_files_are_readable_by_their_owner_alone(tmp_path):
    PieceFile(tmp_path / "pieces", keep=True).close()
    write_whole(tmp_path / "whole", iter([b""]))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(RecordError, match="gone/file: No such file or directory; "):
        PieceFile(tmp_path / "gone" / "file", keep=True)


def test_metrics_trace_and_tensorboard_stay_valid_when_the_disk_is_full(tmp_path):
    jsonl = JsonlSink(tmp_path / "metrics.jsonl")
    trace = TraceWriter(tmp_path / "trace.json", name="run")
    board = TensorBoardSink(tmp_path / "tensorboard")
    sinks = (jsonl, board, trace)
    (events,) = (tmp_path / "tensorboard").iterdir()
    jsonl.write({"step": 1})
    trace.add("step", "step 1", start_s=0, duration_s=1, args={})
    trace.flush()
    board.write({"step": 1, "reward/mean": 0.5})
    before = events.read_bytes()
    with room_for(20):
        with pytest.raises(RecordError, match=r"metrics\.jsonl: File too large"):
            jsonl.write({"step": 2, "reward/mean": 0.25})
        trace.add("step", "step 2", start_s=1, duration_s=1, args={})
        with pytest.raises(RecordError, match=r"trace\.json: File too large"):
            trace.flush()
        with pytest.raises(RecordError, match="tfevents"):
            board.write({"step": 2, "reward/mean": 0.25})
        for sink in sinks:
            with suppress(RecordError):
                sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert [event["name"] for event in json.loads((tmp_path / "trace.json").read_text()) if event["ph"] == "X"] == [
        "step 1"
    ]
    assert events.read_bytes() == before


@pytest.mark.parametrize("is_begun", [False, True])
def test_samples_without_room_are_kept_in_the_folder_for_temporary_files(tmp_path, make_group, monkeypatch, is_begun):
    rollouts, elsewhere = tmp_path / "rollouts", tmp_path / "elsewhere"
    rollouts.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    sink = RecordSink(rollouts)
    records = RolloutRecords([make_group([1.0, 0.0])])
    expected = sink.write(1, records).read_bytes()
    rollouts.rename(tmp_path / "moved")
    if is_begun:
        sink.begin(1, records)
    with pytest.raises(RecordError, match=r"cannot write \S*step_000001\.jsonl: No such file or directory") as raised:
        sink.write(1, records)
    kept = Path(str(raised.value).rpartition("The samples of step 1 are in ")[2])
    assert kept.is_relative_to(elsewhere)
    assert kept.read_bytes() == expected


def test_samples_without_room_anywhere_are_said_to_be_lost(tmp_path, make_group, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records = RolloutRecords([make_group([1.0, 0.0])])
    for is_begun in (False, True):
        sink = RecordSink(tmp_path)
        with (
            room_for(100),
            pytest.raises(RecordError, match="The samples of step 1 are lost: the folder for temporary"),
        ):
            if is_begun:
                sink.begin(1, records)
            sink.write(1, records)
        sink.close()
    assert list(tmp_path.glob("step_*")) == []


def test_samples_that_fail_are_appended_one_prompt_after_the_other(tmp_path, make_group):
    sink = RecordSink(tmp_path)
    first = sink.add_failed(3, RolloutRecords([make_group([None], prompt_id="a")]))
    assert sink.add_failed(3, RolloutRecords([make_group([None], prompt_id="b")])) == first
    assert first.name == "step_000003.failed.jsonl"
    assert [json.loads(line)["prompt_id"] for line in first.read_text().splitlines()] == ["a", "b"]
