"""A run whose folder is on a disk of its own, which is small."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from tests.system.e2e.command import LIMIT_S, Ended, processes_of

NO_MOUNT = 99


def run_on_small_disk(
    place: Path,
    *,
    kib: int,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[subprocess.Popen, Path], None] = lambda process, inside: None,
) -> Ended:
    """`ray-rl train run.yaml` with a tmpfs at `runs`; what is left there is copied to `kept`.

    Args:
        place: the folder to run in, with its `run.yaml`.
        kib: size of the tmpfs.
        environment: variables beside this process's.
        meanwhile: called again and again, with the process and the tmpfs as it can be seen from here.
    """
    for name in ("runs", "kept"):
        (place / name).mkdir()
    program = Path(sys.executable).with_name("ray-rl")
    script = (
        f"mount -t tmpfs -o size={kib}k tmpfs runs || exit {NO_MOUNT}; {program} train run.yaml; code=$?; "
        "cp -a runs/. kept/; exit $code"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    process = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=place,
        env=own | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    inside = Path(f"/proc/{process.pid}/root{place}/runs")
    try:
        give_up_s = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < give_up_s:
            meanwhile(process, inside)
            time.sleep(0.1)
        stdout, stderr = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode == NO_MOUNT:
        pytest.skip("this user may not mount a tmpfs")
    name = yaml.safe_load((place / "run.yaml").read_text())["run"]["name"]
    left = processes_of(process.pid)
    return Ended([], place, place / "kept" / name, process.returncode, stdout.decode(), stderr.decode(), left)
