import pytest

from ray_rl.metrics.step_records import record_of, step_records

FIRST, SECOND = b'{"step": 1, "loss": 0.5}\n', b'{"step": 2}\n'
DAMAGED = [
    b"not json\n",
    b"[1]\n",
    b'{"step": "x"}\n',
    b'{"step": true}\n',
    b"\xff\xfe\n",
    b"{}\n",
    b'{"step": 3, "rew',
]


def test_damaged_and_incomplete_lines_are_no_records(tmp_path):
    assert [record_of(line) for line in DAMAGED] == [None] * len(DAMAGED)
    (tmp_path / "metrics.jsonl").write_bytes(FIRST + b"".join(DAMAGED[:-1]) + SECOND + DAMAGED[-1])
    assert step_records(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2}]


def test_the_end_of_a_file_begins_with_its_first_whole_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(FIRST + SECOND)
    assert step_records(tmp_path / "metrics.jsonl", tail_bytes=len(SECOND) + 3) == [{"step": 2}]
    assert len(step_records(tmp_path / "metrics.jsonl", tail_bytes=1000)) == 2


def test_a_file_that_does_not_exist_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        step_records(tmp_path / "metrics.jsonl")
