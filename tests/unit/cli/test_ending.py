"""Whatever escapes from a command is one message, an exit code, and a traceback in a file."""

import argparse
import asyncio
import errno
import gc
import os
import re
import threading
from pathlib import Path

import pytest

from ray_rl.cli.ending import ended
from ray_rl.errors import ClusterError, ConfigError, FolderHeld, Preempted


def ending(error, capsys, **known):
    def command(arguments):
        raise error

    code = ended(argparse.Namespace(**known), command)
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return code, said.err


def traceback_of(message):
    return Path(re.search(r"the traceback is in (\S+)", message)[1]).read_text()


@pytest.fixture
def log(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "driver.log"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("bug"), r"internal error: KeyError: 'bug' \(at .*test_ending.py:\d+, in command\)"),
        (AssertionError(), r"internal error: AssertionError \(at "),
        (RecursionError("maximum recursion depth exceeded"), "something is nested too deeply to be read"),
        (MemoryError(), "out of memory .*; free memory, or let the run use less"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), r"/x/y: No space left on device; make room \("),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"Disk quota exceeded .*; make room \("),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; check that you may read"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), "/x: No such file; check that it exists"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "/x: Is a directory; check that it exists"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "internal error: UnicodeDecodeError"),
        (SystemExit(0), r"something that was imported or called ended the process \(sys.exit\(0\)\)"),
        (ExceptionGroup("several", [KeyError("a")]), "internal error: ExceptionGroup: several"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_escapes_is_one_line_with_what_where_and_remedy_and_exit_code_1(error, says, capsys, log):
    code, said = ending(error, capsys, log=log)
    assert code == 1
    assert re.match(f"ray-rl: error: {says}", said), said
    assert said.endswith(f"; the traceback is in {log}\n") and said.count("\n") == 1
    assert f"{type(error).__name__}" in log.read_text()


def test_without_a_run_folder_the_traceback_is_in_a_file_for_its_reader_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, said = ending(KeyError("bug"), capsys, log=tmp_path / "none" / "driver.log")
    assert "KeyError: 'bug'" in traceback_of(said)
    (file,) = tmp_path.glob("ray-rl-*.log")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_hides_no_error(capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    code, said = ending(KeyError("bug"), capsys)
    assert code == 1
    assert said.endswith("there is no room for its traceback; RAY_RL_TRACEBACK=1 shows it\n")


def test_the_row_that_somebody_noted_is_said(capsys, log):
    error = ValueError("bad value")
    error.add_note("train.jsonl, row 17")
    assert "internal error: ValueError: bad value; train.jsonl, row 17" in ending(error, capsys, log=log)[1]


def test_the_tracebacks_of_our_own_failures_are_in_the_log_of_the_run_too(capsys, log):
    code, said = ending(ClusterError("worker 3 is gone"), capsys, log=log)
    assert (code, said) == (1, "ray-rl: error: worker 3 is gone\n")
    assert "ray_rl.errors.ClusterError: worker 3 is gone" in log.read_text()


def test_the_log_of_the_process_that_has_the_folder_is_left_alone(capsys, log):
    assert ending(FolderHeld("another process has it"), capsys, log=log)[0] == 1
    assert not log.exists()


def test_an_error_of_ours_in_a_group_is_what_ended_the_command(capsys, log):
    group = BaseExceptionGroup(
        "tasks", [KeyError("side"), ExceptionGroup("inner", [ConfigError("run.steps=0: wrong")])]
    )
    assert ending(group, capsys, log=log) == (2, "ray-rl: error: run.steps=0: wrong\n")
    assert ending(BaseExceptionGroup("tasks", [Preempted("saved")]), capsys) == (75, "ray-rl: saved\n")


def test_a_text_of_50_megabytes_is_cut(capsys, log):
    _, said = ending(ValueError("x" * 50_000_000), capsys, log=log)
    assert len(said) < 21_000 and "characters left out" in said
    assert log.stat().st_size < 5_000_000


def test_secrets_of_the_configuration_reach_neither_message_nor_log(capsys, log):
    _, said = ending(KeyError("401 for s3cr3t-value"), capsys, log=log, secrets={"s3cr3t-value"})
    assert "s3cr3t" not in said + log.read_text()


def test_the_traceback_is_shown_on_request(capsys, log, monkeypatch):
    monkeypatch.setenv("RAY_RL_TRACEBACK", "1")

    def command(arguments):
        raise KeyError("bug")

    assert ended(argparse.Namespace(log=log), command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "KeyError: 'bug'"


def test_what_escapes_from_a_thread_is_one_line(capsys, log):
    def command(arguments):
        thread = threading.Thread(target=lambda: os.stat("/nowhere"), name="watcher")
        thread.start()
        thread.join(timeout=10)
        return 0

    assert ended(argparse.Namespace(log=log), command) == 0
    said = capsys.readouterr().err
    assert said == f"ray-rl: warning: watcher: /nowhere: No such file or directory; the traceback is in {log}\n"


def test_what_a_task_raised_and_nobody_awaited_is_one_line(capsys, log):
    async def fails():
        raise KeyError("lost")

    async def forgets():
        task = asyncio.ensure_future(fails())
        await asyncio.sleep(0)
        del task

    def command(arguments):
        asyncio.run(forgets())
        gc.collect()
        return 0

    assert ended(argparse.Namespace(log=log), command) == 0
    said = capsys.readouterr().err
    assert said == (
        "ray-rl: warning: Task exception was never retrieved: internal error: KeyError: 'lost'; "
        f"the traceback is in {log}\n"
    )
    assert "in fails" in log.read_text()
