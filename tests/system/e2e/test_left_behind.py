"""Only its owner can enter where a run keeps sockets and files; what a killed one leaves, the next start removes."""

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.system.e2e.command import kill_all, place_for, run, steps_done, wait_until

pytestmark = pytest.mark.faults

SHARED = Path("/dev/shm")
LIMIT_S = 60


class Traces:
    """What a run has in the folder for temporary files and in shared memory."""

    def __init__(self, temporary: Path, pid: int) -> None:
        self.temporary, self.pid = temporary, pid

    @property
    def files(self) -> list[Path]:
        """Entries of the folder, without torch's own cache of compiled kernels."""
        return [path for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_")]

    @property
    def shared(self) -> list[Path]:
        return [*SHARED.glob(f"ray_rl-{self.pid}-*"), *SHARED.glob(f"sem.ray_rl-{self.pid}-*")]

    @property
    def segments(self) -> list[Path]:
        return list(SHARED.glob(f"ray_rl-{self.pid}-*"))


@pytest.fixture(scope="module")
def temporary():
    """A folder for temporary files that is empty; its path is short enough for sockets below it."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, temporary):
    """Starts a run and kills all its processes at a moment; its traces, and what `look` saw just before."""
    place = place_for(tmp_path_factory.mktemp("left"), "left", steps=300, train={"workers": 2, "zero_stage": 3})
    folder = place / "runs" / "left"

    def kill_when(moment, look=lambda traces: None):
        seen = {}

        def kill(process):
            traces = seen["traces"] = Traces(temporary, process.pid)
            wait_until(process, lambda: moment(traces, folder), poll_s=0.001)
            seen["looked"] = look(traces)
            kill_all(process.pid)

        ended = run(place, "train", "run.yaml", "--resume", "auto", then=kill, environment={"TMPDIR": str(temporary)})
        assert ended.left_behind == []
        return seen["traces"], seen["looked"]

    yield place, kill_when


def clean(temporary: Path) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ray-rl")), "doctor", "--clean"],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modes(traces: Traces) -> list[tuple[str, int]]:
    return [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in (*traces.files, *traces.shared)]


def test_a_run_that_trains_lets_nobody_else_in_and_doctor_removes_what_it_leaves_when_it_is_killed(killed, temporary):
    _, kill_when = killed
    traces, seen = kill_when(lambda traces, folder: steps_done(folder) >= 1, look=modes)
    ((private, mode),) = seen
    assert private.startswith(f"ray_rl-{traces.pid}-")
    assert mode == 0o700
    assert [path.name for path in traces.files] == [private]
    said = clean(temporary)
    assert f"removed {temporary / private} (" in said
    assert traces.files == traces.shared == []


def test_a_run_killed_while_engines_load_leaves_nothing_that_doctor_does_not_remove(killed, temporary):
    _, kill_when = killed
    traces, _ = kill_when(lambda traces, folder: any(temporary.glob("ray_rl-*/tmp/vllm_dist_*")))
    assert len(traces.files) == 1
    clean(temporary)
    assert traces.files == traces.shared == []


def test_the_next_start_removes_the_memory_of_a_run_killed_between_joining_and_the_first_publish(killed, temporary):
    place, kill_when = killed
    traces, seen = kill_when(lambda traces, folder: traces.segments, look=modes)
    (_, mode), *shared = seen
    assert mode == 0o700
    assert {mode for _, mode in shared} == {0o600}
    assert {path.name for path in traces.segments} == {name for name, _ in shared}
    environment = {"TMPDIR": str(temporary)}
    ended = run(place, "train", "run.yaml", "run.name=next", "run.steps=1", environment=environment)
    assert ended.code == 0, ended.stderr
    assert " MiB that killed runs had left" in ended.stdout
    assert traces.files == traces.shared == []
