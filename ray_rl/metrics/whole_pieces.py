"""Writes files to a disk that may be full: a piece that does not fit is not written, and the error says where."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_rl.errors import RecordError
from ray_rl.metrics.modes import open_file
from ray_rl.sizes import MIB


class PieceFile:
    """A file that grows piece by piece. When `append` returns, the kernel has the whole piece."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        """Opens the file, readable by its owner only.

        Args:
            path: the file.
            keep: append to the existing content instead of overwriting it.

        Raises:
            RecordError: the file cannot be opened.
        """
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC)
        with explained(path):
            self._file = os.fdopen(open_file(path, flags), "r+b", buffering=0)
            self._file.seek(0, os.SEEK_END)

    def append(self, piece: bytes, *, over: bytes = b"") -> None:
        """Writes a piece at the end.

        Args:
            piece: any bytes, at least as long as `over`.
            over: the current end of the file, which the piece replaces.

        Raises:
            RecordError: the piece does not fit, or the disk fails; the file is unchanged.
        """
        end = self._file.seek(0, os.SEEK_END)
        with explained(self._path):
            try:
                # The part that needs new space is written first: the rest overwrites existing space.
                _write_all(self._file.fileno(), piece[len(over) :])
                self._file.seek(end - len(over))
                _write_all(self._file.fileno(), piece[: len(over)])
            except OSError:
                self._file.truncate(end)
                raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def write_whole(path: Path, pieces: Iterator[bytes], *, flush: bool = False) -> None:
    """Writes a file, readable by its owner only, that appears under its name once it is complete.

    Args:
        path: The file; an existing file is replaced, or left unchanged if the new one cannot be written.
        pieces: The content.
        flush: Waits until the content is on the disk before the file gets its name, so that a power loss leaves the old
            content or the new one.

    Raises:
        RecordError: the file does not fit, or the disk fails; no part of it remains.
    """
    write_partial(path, pieces, flush=flush)
    complete(path)


def write_partial(path: Path, pieces: Iterator[bytes], *, flush: bool = False) -> None:
    """Writes the content of a file under another name, for `complete` or `discard`; see `write_whole`."""
    with (
        _removed_if_refused(path) as partial,
        os.fdopen(open_file(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file,
    ):
        file.writelines(pieces)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def complete(path: Path) -> None:
    """Gives a file that `write_partial` has written its name; see `write_whole`."""
    with _removed_if_refused(path) as partial:
        partial.replace(path)


def discard(path: Path) -> None:
    """Removes what `write_partial` has written, if the file system lets it."""
    with contextlib.suppress(OSError):
        _partial(path).unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


@contextmanager
def _removed_if_refused(path: Path) -> Iterator[Path]:
    with explained(path):
        try:
            yield _partial(path)
        except OSError:
            discard(path)
            raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns errors of the disk into errors that name the file and the free space."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}{_room(path)}") from error


def _room(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return ""
    free_mib = shutil.disk_usage(folder).free / MIB
    return f"; {free_mib:.1f} MiB are free there. Make room, or set run.dir to another disk"


def _write_all(file: int, piece: bytes) -> None:
    """Writes all bytes: os.write may write only a part, for example on a disk with little space."""
    left = memoryview(piece)
    while left:
        left = left[os.write(file, left) :]
