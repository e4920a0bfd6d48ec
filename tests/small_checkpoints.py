"""Checkpoints of three small files, for the tests of the store."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_rl.checkpoint.store import Checkpoint, CheckpointStore, disk_errors_explained

FILES = ("model/rank_0.bin", "optimizer/group_0/rank_0.bin", "state.json")


def store_in(folder: Path, *, keep_last=2, keep_every=4) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", keep_last=keep_last, keep_every=keep_every)


def write_files(folder: Path, content: str) -> None:
    """What workers do: several writes a file, and no flush."""
    for name in FILES:
        path = folder / name
        with disk_errors_explained(path):
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            for line in (f"{name}\n", content):
                os.write(descriptor, line.encode())
            os.close(descriptor)


def content_of(checkpoint: Checkpoint) -> str:
    """What was written to it, the same in every file."""
    (content,) = {(checkpoint.folder / name).read_text().removeprefix(f"{name}\n") for name in FILES}
    return content


def commit(store: CheckpointStore, step: int, content: str = "") -> Checkpoint:
    write_files(store.begin(step), content or f"step {step}")
    return store.commit(step)


def refuse(note: str) -> None:
    raise AssertionError(note)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of flushes would take minutes on a disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(memory) -> Path:
    return Path(tempfile.mkdtemp(dir=memory))
