import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from ray_rl.errors import ConfigError, FolderHeld, OutsideError, UserError
from ray_rl.metrics.folder_lock import locked

DRIVER_WITH_A_CHILD = """\
import os, sys, time
from pathlib import Path
from ray_rl.metrics.folder_lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""
"""A forked child keeps the lock of the kernel for as long as it lives."""


@pytest.fixture
def driver(tmp_path):
    """A process that holds the folder, and its child."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER_WITH_A_CHILD, tmp_path], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait(timeout=60)
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_a_held_folder_is_an_error_that_passes_and_names_its_holder(driver, tmp_path):
    message = rf"another process \(pid {driver.pid} on {os.uname().nodename}\) trains in this run folder; wait for its"
    with pytest.raises(FolderHeld, match=message), locked(tmp_path):
        pass
    assert issubclass(FolderHeld, OutsideError)
    assert not issubclass(FolderHeld, UserError)  # which is exit code 2: never again


def test_the_lock_of_a_dead_process_is_taken_over_though_its_child_still_has_it(driver, tmp_path):
    driver.kill()
    driver.wait(timeout=60)
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        with pytest.raises(FolderHeld, match=f"pid {os.getpid()}"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("holder", "named"),
    [
        ({"pid": 1, "host": "node-7", "pids_of": "another boot", "started": -1}, r"\(pid 1 on node-7\)"),
        ({}, "another process trains"),
        (None, "another process trains"),
    ],
)
def test_a_holder_that_cannot_be_looked_up_here_is_taken_to_live(tmp_path, holder, named):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if holder is not None:
            file.write(json.dumps(holder))
            file.flush()
        with pytest.raises(FolderHeld, match=named), locked(tmp_path):
            pass


def test_a_lock_whose_process_ended_stops_nobody(tmp_path):
    (tmp_path / "lock").write_text('{"pid": 1, "host": "node-7"}')
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_named_as_such(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(ConfigError, match=r"cannot lock files \(Function not implemented\); mount it"),
        locked(tmp_path),
    ):
        pass
