"""Makes the private temporary folder of a local cluster, and removes leftovers of killed runs.

Sockets, logs and temporary files of Ray and vLLM are in a folder that only its owner can enter, and the names of
semaphores in /dev/shm contain its name. The driver holds a lock on the folder, which the kernel releases however the
driver ends. Imports nothing heavy, because `ray-rl doctor` uses it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray_rl.errors import ClusterError

SHARED = Path("/dev/shm")
PROC = Path("/proc")
OWN_FOLDER = re.compile(r"ray_rl-\d+-[a-z0-9_]{8}")
"""Name of a private folder: the id of the process that made it, and the suffix of `mkdtemp`."""
OWN_SEGMENT = re.compile(r"ray_rl-.+")
"""Name of shared memory for weights."""
SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket."""
LONGEST = "/ray_rl-4194304-abcdefgh/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Longest path of a socket, below the folder in which the private folder is made."""
REMOVE_TRIES, REMOVE_PAUSE_S = 5, 0.2
"""Processes of Ray that are still ending may write into the folder while it is removed."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The private temporary folder of a run."""

    path: Path

    @property
    def ray(self) -> Path:
        """Ray's sessions with sockets and logs. Ray opens this folder to everybody; the one above it stays closed."""
        return self.path / "ray"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the workers."""
        return self.path / "tmp"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a worker and its children keep their temporary files and semaphores here."""
        return {"TMPDIR": str(self.temporary), SEMAPHORES: self.path.name}


SEMAPHORES = "RAY_RL_SEMAPHORES"
"""Variable with the prefix of the names of a worker's semaphores."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder of a run that was killed."""

    path: Path
    size_bytes: int


def name_semaphores(prefix: str) -> None:
    """Makes the names of semaphores of this process and of processes that it spawns start with `prefix`.

    A named semaphore of a killed process stays in /dev/shm, and only its name says whose it is.
    """
    # multiprocessing has no public setting for it; spawned processes inherit this one.
    multiprocessing.current_process()._config["semprefix"] = f"/{prefix}"  # type: ignore[attr-defined]


@contextmanager
def private_folder() -> Iterator[Scratch]:
    """Makes a folder that only its owner can enter, and removes it after the block.

    Raises:
        ClusterError: no folder for temporary files has a path that is short enough for sockets.
    """
    path, lock = _locked_folder(_base())
    try:
        scratch = Scratch(path)
        scratch.temporary.mkdir()
        yield scratch
    finally:
        _remove(path)
        os.close(lock)


def leftovers() -> list[Leftover]:
    """Returns the files and folders of dead runs of this user that no live process uses."""
    mentioned, mapped = _uses()
    found = [path for folder in _dead_folders(mentioned) for path in (*_semaphores(folder.name), folder)]
    found += [path for path in _entries(SHARED, OWN_SEGMENT) if _is_dead_segment(path, mapped)]
    return [Leftover(path, _size_bytes(path)) for path in found]


def remove_leftovers() -> tuple[list[Leftover], list[Leftover]]:
    """Removes the leftovers of dead runs.

    Returns:
        The removed leftovers, and those that could not be removed.
    """
    found = leftovers()
    for leftover in found:
        _remove(leftover.path)
    resists = [leftover for leftover in found if os.path.lexists(leftover.path)]
    return [leftover for leftover in found if leftover not in resists], resists


def _base() -> Path:
    """Returns the folder for private folders: the first one for temporary files with a path that is short enough."""
    longest = SOCKET_PATH_BYTES - len(LONGEST)
    for base in _bases():
        if len(os.fsencode(base)) <= longest and os.access(base, os.W_OK | os.X_OK):
            return base
    raise ClusterError(
        f"no folder for temporary files among {', '.join(map(str, _bases()))} can be written and has a path of at most "
        f"{longest} bytes, as sockets need a short path; set TMPDIR to such a folder"
    )


def _bases() -> list[Path]:
    given = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), tempfile.gettempdir(), "/tmp"]
    return list(dict.fromkeys(Path(base).absolute() for base in given if base))


def _locked_folder(base: Path) -> tuple[Path, int]:
    """Makes a folder, and returns it with the descriptor that holds its lock."""
    while True:
        try:
            path = Path(tempfile.mkdtemp(prefix=f"ray_rl-{os.getpid()}-", dir=base))
        except OSError as error:
            raise ClusterError(f"{base}: {error.strerror}; set TMPDIR to another folder for temporary files") from error
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # without locks in the file system, other runs never see the folder as unlocked
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_dir():  # else another run removed it as a leftover before we locked it
            return path, lock
        os.close(lock)


def _dead_folders(mentioned: str) -> Iterator[Path]:
    for base in _bases():
        for path in _entries(base, OWN_FOLDER):
            mode = path.lstat().st_mode
            is_private = stat.S_ISDIR(mode) and not stat.S_IMODE(mode) & 0o077
            if is_private and path.name not in mentioned and _is_unlocked(path):
                yield path


def _is_dead_segment(path: Path, mapped: str) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) and path.name not in mapped and _is_unlocked(path)


def _semaphores(name: str) -> Iterator[Path]:
    return _entries(SHARED, re.compile(rf"sem\.{re.escape(name)}-.+"))


def _entries(folder: Path, name: re.Pattern[str]) -> Iterator[Path]:
    """Yields entries of a folder that belong to this user."""
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if name.fullmatch(path.name) and path.lstat().st_uid == os.geteuid():
                yield path


def _is_unlocked(path: Path) -> bool:
    """Returns whether nobody holds the lock on a file or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _uses() -> tuple[str, str]:
    """Returns command lines and initial environments of all visible processes, and the files that they have mapped."""
    mentioned: list[str] = []
    mapped: list[str] = []
    for process in PROC.glob("[0-9]*"):
        for name, texts in (("cmdline", mentioned), ("environ", mentioned), ("maps", mapped)):
            with suppress(OSError):
                texts.append((process / name).read_bytes().decode(errors="replace"))
    return "\n".join(mentioned), "\n".join(line for text in mapped for line in text.splitlines() if "/dev/shm/" in line)


def _size_bytes(path: Path) -> int:
    """Returns the bytes on disk or in memory, including the contents of a folder."""
    files = [path]
    if path.is_dir():
        files += [Path(folder) / name for folder, folders, names in os.walk(path) for name in folders + names]
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total


def _remove(path: Path) -> None:
    """Removes a file, or a private folder with its semaphores. The next start finds whatever could not be removed."""
    if not path.is_dir():
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return
    for semaphore in _semaphores(path.name):
        _remove(semaphore)
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(REMOVE_PAUSE_S)
