import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager

import pytest

from ray_rl.launching.kuberay.drain import drivers, head_address, main, outlast_head
from ray_rl.launching.kuberay.retries import RAY_JOB

DRIVER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep({saves_s}), sys.exit(75)))
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def process(program, *words, name):
    """A process whose command line is `python <name> words`."""
    command = [sys.executable, str(name), *words]
    name.write_text(program)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "up\n"
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture(autouse=True)
def job(monkeypatch):
    """No other driver on this machine is one of this job."""
    name = f"test-{uuid.uuid4()}"
    monkeypatch.setenv(RAY_JOB, name)
    return name


def reaped(child):
    """As the first process of a container does; a process that nobody waits for stays in the table."""
    thread = threading.Thread(target=child.wait, args=(60,), daemon=True)
    thread.start()
    return thread


def test_the_driver_is_told_and_waited_for(tmp_path):
    with process(DRIVER.format(saves_s=1), "train", "run.yaml", name=tmp_path / "ray-rl") as driver:
        assert driver.pid in drivers(os.environ[RAY_JOB])
        thread, started_s = reaped(driver), time.monotonic()
        assert main(["driver", "30"]) == 0
        assert 1 <= time.monotonic() - started_s < 10
        thread.join(timeout=10)
        assert driver.returncode == 75


def test_a_driver_that_takes_too_long_is_not_waited_for(tmp_path):
    with process(DRIVER.format(saves_s=30), "train", "run.yaml", name=tmp_path / "ray-rl"):
        started_s = time.monotonic()
        main(["driver", "1"])
        assert time.monotonic() - started_s < 5


@pytest.mark.parametrize(("name", "word"), [("ray-rl", "validate"), ("other", "train")])
def test_other_processes_are_left_alone(tmp_path, name, word):
    with process(DRIVER.format(saves_s=0), word, "run.yaml", name=tmp_path / name) as other:
        assert other.pid not in drivers(os.environ[RAY_JOB])


def test_a_driver_of_another_job_is_left_alone(tmp_path, monkeypatch):
    with process(DRIVER.format(saves_s=0), "train", "run.yaml", name=tmp_path / "ray-rl") as driver:
        monkeypatch.setenv(RAY_JOB, "another")
        main(["driver", "5"])
        assert driver.poll() is None
        assert driver.pid not in drivers(None)


def processes(folder, *words):
    """A process table with one process."""
    (folder / "17").mkdir()
    (folder / "17" / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    return folder


def test_a_worker_stays_as_long_as_its_head_answers(tmp_path):
    head = socket.create_server(("127.0.0.1", 0))
    proc = processes(tmp_path, "raylet", f"--gcs-address=127.0.0.1:{head.getsockname()[1]}")
    assert head_address(proc) == head.getsockname()
    threading.Timer(2, head.close).start()
    started_s = time.monotonic()
    outlast_head(started_s + 30, proc=proc)
    assert 2 <= time.monotonic() - started_s < 15


def test_a_worker_does_not_wait_for_ever(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        proc = processes(tmp_path, "raylet", f"--gcs-address=127.0.0.1:{head.getsockname()[1]}")
        started_s = time.monotonic()
        outlast_head(started_s + 1, proc=proc)
        assert 1 <= time.monotonic() - started_s < 5


def test_a_pod_without_ray_ends_at_once(tmp_path):
    proc = processes(tmp_path, "bash")
    assert head_address(proc) is None
    started_s = time.monotonic()
    outlast_head(started_s + 30, proc=proc)
    assert time.monotonic() - started_s < 5
