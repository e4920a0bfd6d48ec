"""Files on a disk that may be full: what does not fit whole is not written at all, and the error says where."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_rl.errors import RecordError
from ray_rl.metrics.modes import open_file


class PieceFile:
    """A file that grows piece by piece, each on its way to disk when `append` returns."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        """Opens the file, readable by its owner alone.

        Args:
            path: the file.
            keep: go on after what it holds, or else begin anew.

        Raises:
            RecordError: it cannot be opened.
        """
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC)
        with explained(path):
            self._file = os.fdopen(open_file(path, flags), "r+b", buffering=0)
            self._file.seek(0, os.SEEK_END)

    def append(self, piece: bytes, *, over: bytes = b"") -> None:
        """Writes a piece at the end.

        Args:
            piece: anything, at least as long as `over`.
            over: what the file ends in; the piece replaces it.

        Raises:
            RecordError: it does not fit, or the disk fails; the file is as it was.
        """
        end = self._file.seek(0, os.SEEK_END)
        with explained(self._path):
            try:
                # What needs more room comes first: the rest goes where there is room already.
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
    """Writes a file that appears under its name once it is whole, readable by its owner alone.

    Args:
        path: The file; one of that name is replaced, and stays as it is where the new one cannot be written.
        pieces: The content.
        flush: Waits until the content is on the disk before the file gets its name, so that a power loss leaves the old
            content or the new one.

    Raises:
        RecordError: it does not fit, or the disk fails; nothing is left of it.
    """
    partial = path.with_name(f"{path.name}.partial")
    with explained(path):
        try:
            with os.fdopen(open_file(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.writelines(pieces)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the disk says into an error that names the file and the room that is left."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}{_room(path)}") from error


def _room(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return ""
    free_mib = shutil.disk_usage(folder).free / 2**20
    return f"; {free_mib:.1f} MiB are free there. Make room, or set run.dir to another disk"


def _write_all(file: int, piece: bytes) -> None:
    """os.write may take less than all, as on a disk with room for a part."""
    left = memoryview(piece)
    while left:
        left = left[os.write(file, left) :]
