"""Finds the data files for a path, and computes digests that show whether they have changed."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ray_rl.config.data import Csv, Files, Jsonl, Parquet, is_pattern
from ray_rl.errors import DataError

SUFFIXES = {"jsonl": (".jsonl", ".jsonl.gz"), "parquet": (".parquet",), "csv": (".csv", ".tsv")}
"""Suffixes of the files in a folder, by `data.kind`."""
WHOLE_BYTES = 2**30
"""Files of at most this size are hashed completely and kept in memory."""
BLOCKS, BLOCK_BYTES = 64, 2**20
"""Number and size of the evenly spread blocks that are hashed of a larger file, in addition to its end."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a source."""

    path: Path
    name: str
    """The file's name in ids: its path inside the folder or pattern, which does not depend on the folder's place."""
    shown: str
    """The path as the user wrote it, for errors."""


def data_files(config: Files) -> list[DataFile]:
    """Returns the files for `data.path`, sorted by name.

    Raises:
        DataError: there are no files.
    """
    path = Path(config.path).expanduser()
    if path.is_file():
        return [DataFile(path, path.name, config.path)]
    suffixes = SUFFIXES[config.kind] if isinstance(config, Jsonl | Parquet | Csv) else ()
    if path.is_dir():
        root, found = path, [each for each in path.rglob("*") if each.name.endswith(suffixes)]
        wanted = f"files in it end in {' or '.join(suffixes)}"
    elif is_pattern(config.path):
        root = _before_the_pattern(path)
        found, wanted = [Path(each) for each in glob.glob(str(path), recursive=True)], "file matches the pattern"
    else:
        raise DataError(f"data.path={config.path} does not exist (working directory: {Path.cwd()}); correct data.path")
    named = sorted((each.relative_to(root).as_posix(), each) for each in found if each.is_file())
    # Hidden files are remains of downloads and editors.
    named = [(name, each) for name, each in named if not any(part.startswith(".") for part in name.split("/"))]
    if not named:
        raise DataError(f"data.path={config.path}: no {wanted}; correct data.path or data.kind")
    return [DataFile(each, name, str(each)) for name, each in named]


def read_bytes(file: DataFile, read: Callable[[Path], Result]) -> Result:
    """Calls `read` with the file's path and returns its result.

    Raises:
        DataError: the system cannot read the file.
    """
    try:
        return read(file.path)
    except OSError as error:
        raise DataError(f"{file.shown}: cannot be read: {error}; correct data.path, or the file") from error


def digests(files: Sequence[DataFile]) -> Mapping[str, str]:
    """Returns a digest of the content of each file, by its name: `blake2b:...`.

    A file larger than WHOLE_BYTES is hashed in parts, `blake2b-sampled:...`: its size, and blocks spread over it.
    """
    return {file.name: read_bytes(file, _digest) for file in files}


def _digest(path: Path) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(BLOCK_BYTES):
                hashed.update(block)
            return f"blake2b:{hashed.hexdigest()}"
        hashed.update(str(size).encode())
        for number in range(BLOCKS + 1):
            file.seek((size - BLOCK_BYTES) * number // BLOCKS)
            hashed.update(file.read(BLOCK_BYTES))
    return f"blake2b-sampled:{hashed.hexdigest()}"


def _before_the_pattern(path: Path) -> Path:
    """Returns the longest folder at the start of a pattern that has no wildcard."""
    root = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts[:-1]:
        if any(character in part for character in "*?["):
            break
        root /= part
    return root
