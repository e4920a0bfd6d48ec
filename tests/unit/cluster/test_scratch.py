"""The private folder of a run, and what of dead runs is removed: ours, dead, and nothing else."""

import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ray_rl.cluster import scratch
from ray_rl.cluster.scratch import leftovers, private_folder, remove_leftovers
from ray_rl.errors import ClusterError

NAME = "ray_rl-4711-abcdefgh"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders in place of those for temporary files and shared memory."""
    temporary, shared = tmp_path / "temporary", tmp_path / "shared"
    temporary.mkdir()
    shared.mkdir()
    monkeypatch.setattr(scratch, "_bases", lambda: [temporary])
    monkeypatch.setattr(scratch, "SHARED", shared)
    return temporary, shared


def dead_folder(temporary: Path, name: str = NAME, mode: int = 0o700) -> Path:
    folder = temporary / name
    (folder / "ray" / "session").mkdir(parents=True)
    (folder / "ray" / "session" / "log").write_text("x" * 5000)
    folder.chmod(mode)
    return folder


def left() -> list[str]:
    return [leftover.path.name for leftover in leftovers()]


def test_only_its_owner_can_enter_the_folder_of_a_run_and_it_goes_with_the_run(monkeypatch):
    monkeypatch.setattr(scratch, "_bases", lambda: [Path("/tmp")])
    with private_folder() as private:
        assert private.path.parent == Path("/tmp")
        assert private.path.name.startswith(f"ray_rl-{os.getpid()}-")
        assert stat.S_IMODE(private.path.stat().st_mode) == 0o700
        assert private.temporary.is_dir()
        assert private.environment == {"TMPDIR": str(private.temporary), "RAY_RL_SEMAPHORES": private.path.name}
        deepest = private.ray / scratch.LONGEST.partition("/ray/")[2]
        deepest.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(deepest))
        assert private.path.name not in left()
    assert not private.path.exists()


def test_a_folder_for_temporary_files_whose_path_is_too_long_for_sockets_is_passed_over(tmp_path, monkeypatch):
    deep = tmp_path / "a-folder-with-a-long-name"
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    with private_folder() as private:
        assert private.path.parent == Path("/tmp")
    monkeypatch.setattr(scratch, "_bases", lambda: [deep])
    with pytest.raises(ClusterError, match=r"has a path of at most \d+ bytes, .*; set TMPDIR to such a folder"):
        private_folder().__enter__()


def test_what_a_killed_run_left_is_removed_with_its_semaphores_and_shared_memory(places):
    temporary, shared = places
    folder = dead_folder(temporary)
    (shared / f"sem.{NAME}-k3x_9a").write_bytes(bytes(32))
    (shared / "ray_rl-4711-0123456789abcdef").write_bytes(bytes(2**20))
    removed, resists = remove_leftovers()
    assert {file.path.name for file in removed} == {NAME, f"sem.{NAME}-k3x_9a", "ray_rl-4711-0123456789abcdef"}
    assert resists == []
    assert {file.path.name: file.size_bytes for file in removed}["ray_rl-4711-0123456789abcdef"] == 2**20
    assert not folder.exists()
    assert list(shared.iterdir()) == []
    assert remove_leftovers() == ([], [])


def test_what_is_not_of_a_run_stays(places):
    temporary, shared = places
    dead_folder(temporary, "ray_rl-abcdefgh")  # samples that a full disk did not take
    dead_folder(temporary, "ray_rl-4712-abcdefgh", mode=0o755)
    dead_folder(temporary, "elsewhere")
    (temporary / "ray_rl-4713-abcdefgh").symlink_to(temporary / "elsewhere")
    (temporary / "ray_rl-4714-abcdefgh").write_text("a file")
    for name in ("sem.mp-abcdefgh", "sem.ray_rl-4999-abcdefgh-x", "psm_1234", "sem.ray_rl"):
        (shared / name).write_bytes(b"x")
    (shared / "ray_rl-folder").mkdir()
    (shared / "ray_rl-link").symlink_to(shared / "psm_1234")
    before = sorted((*temporary.rglob("*"), *shared.rglob("*")))
    assert remove_leftovers() == ([], [])
    assert sorted((*temporary.rglob("*"), *shared.rglob("*"))) == before


def test_what_belongs_to_somebody_else_stays(places, monkeypatch):
    dead_folder(places[0])
    (places[1] / "ray_rl-4711-0123").write_bytes(b"x")
    assert len(left()) == 2
    monkeypatch.setattr(scratch.os, "geteuid", lambda: os.getuid() + 1)
    assert left() == []


def test_what_its_owner_holds_locked_stays_until_the_owner_is_gone(places):
    folder, segment = dead_folder(places[0]), places[1] / "ray_rl-4711-0123"
    segment.write_bytes(b"x")
    held = [os.open(path, os.O_RDONLY) for path in (folder, segment)]
    for descriptor in held:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert left() == []
    for descriptor in held:
        os.close(descriptor)
    assert left() == [NAME, "ray_rl-4711-0123"]


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_the_folder_that_a_live_process_of_a_dead_driver_uses_stays(places, where):
    folder = dead_folder(places[0])
    words = ["sleep", "60"] if where == "environment" else [sys.executable, "-c", "input()", f"--temp-dir={folder}/ray"]
    environment = {"TMPDIR": str(folder / "tmp")} if where == "environment" else {}
    with subprocess.Popen(words, env=os.environ | environment, stdin=subprocess.PIPE) as process:
        assert left() == []
        process.kill()
    assert left() == [NAME]


def test_shared_memory_that_a_live_process_has_mapped_stays(monkeypatch):
    segment = scratch.SHARED / f"ray_rl-{os.getpid()}-mapped"
    segment.write_bytes(bytes(4096))
    try:
        with segment.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            assert segment.name not in left()
        assert segment.name in left()
    finally:
        segment.unlink()


def test_semaphores_of_a_worker_and_of_what_it_spawns_carry_the_name_of_the_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from ray_rl.cluster.scratch import name_semaphores\n"
        "spawn = multiprocessing.get_context('spawn')\n"
        "def show():\n"
        "    print(spawn.Lock()._semlock.name, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    name_semaphores(sys.argv[1])\n"
        "    show()\n"
        "    child = spawn.Process(target=show)\n"
        "    child.start()\n"
        "    child.join(20)\n"
    )
    root = str(Path(__file__).parents[3])
    command = [sys.executable, str(script), NAME]
    names = subprocess.check_output(command, env=os.environ | {"PYTHONPATH": root}, text=True, timeout=60).split()
    assert len(names) == 2
    assert all(name.startswith(f"/{NAME}-") for name in names)
