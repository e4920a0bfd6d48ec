"""Output that nobody can read any more, and a log that cannot be written, end no run; `ray-rl stop` does."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.e2e.command import LIMIT_S, kill_all, place_for, processes_of, steps_done, wait_until

pytestmark = pytest.mark.faults

STEPS = 400
RAY_RL = str(Path(sys.executable).with_name("ray-rl"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run on a terminal that is closed after its first step, whose log is full from then on, and that is stopped.

    Its process, its folder, what `status` said while it ran, and the end of `stop`.
    """
    place = place_for(
        tmp_path_factory.mktemp("lost"), "lost", steps=STEPS, checkpoint={"every_steps": None, "export": False}
    )
    folder = place / "runs" / "lost"
    ours, its = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    # `setsid --ctty`: the terminal is that of its session, which gets SIGHUP when it is closed.
    process = subprocess.Popen(
        ["setsid", "--ctty", RAY_RL, "train", "run.yaml"],
        cwd=place,
        env=environment | {"TERM": "xterm-256color"},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        os.set_blocking(ours, False)

        def has_trained() -> bool:
            with contextlib.suppress(OSError):
                os.read(ours, 2**16)
            return steps_done(folder) >= 1

        wait_until(process, has_trained)
        (folder / "logs" / "driver.log").unlink(missing_ok=True)
        (folder / "logs" / "driver.log").symlink_to("/dev/full")
        os.close(ours)
        before = steps_done(folder)
        wait_until(process, lambda: steps_done(folder) >= before + 5)
        status = subprocess.run(
            [RAY_RL, "status", str(folder)], capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        stop = subprocess.run(
            [RAY_RL, "stop", str(folder)], capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False
        )
        code = process.wait(timeout=60)
    except BaseException:
        kill_all(process.pid)
        raise
    return process.pid, code, folder, status, stop


def test_a_run_trains_on_without_its_terminal_and_its_log(stopped):
    _, _, folder, status, _ = stopped
    assert steps_done(folder) >= 6
    assert status.returncode == 0
    assert "running (pid " in status.stdout


def test_stop_of_its_folder_lets_it_save_and_says_from_where_it_resumes(stopped):
    pid, code, folder, _, stop = stopped
    assert (stop.returncode, code) == (0, 75), stop.stderr
    step = steps_done(folder)
    assert step < STEPS
    assert stop.stdout == (
        f"{folder}: ended, stopped, after step {step} of {STEPS}; its newest checkpoint is of step {step}\n"
        f"  next: ray-rl resume {folder}\n"
    )
    assert processes_of(pid) == []
