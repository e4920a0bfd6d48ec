"""Data files: which ones a path stands for, and whether they are the same as before."""

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
"""Names that the files in a folder end in, by `data.kind`."""
WHOLE_BYTES = 2**30
"""Files of at most this size are hashed from start to end, and kept in memory."""
BLOCKS, BLOCK_BYTES = 64, 2**20
"""A larger file is hashed at so many places, spread evenly, and at its end."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a source."""

    path: Path
    name: str
    """The file in ids: its path inside of the folder or pattern, so that it is the same wherever the folder is."""
    shown: str
    """The path as the user wrote it, for errors."""


def data_files(config: Files) -> list[DataFile]:
    """The files that `data.path` stands for, in the order of their names.

    Raises:
        DataError: there are none.
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
        raise DataError(f"data.path={config.path} does not exist (looked from {Path.cwd()}); correct data.path")
    named = sorted((each.relative_to(root).as_posix(), each) for each in found if each.is_file())
    # Hidden files are left over by downloads and editors.
    named = [(name, each) for name, each in named if not any(part.startswith(".") for part in name.split("/"))]
    if not named:
        raise DataError(f"data.path={config.path}: no {wanted}; correct data.path or data.kind")
    return [DataFile(each, name, str(each)) for name, each in named]


def read_bytes(file: DataFile, read: Callable[[Path], Result]) -> Result:
    """What `read` makes of the file.

    Raises:
        DataError: the system cannot read it.
    """
    try:
        return read(file.path)
    except OSError as error:
        raise DataError(f"{file.shown}: cannot be read: {error}; correct data.path, or the file") from error


def digests(files: Sequence[DataFile]) -> Mapping[str, str]:
    """A digest of the content of each file, by its name: `blake2b:...`.

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
    """The longest folder at the start of a pattern that has no wildcard."""
    root = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts[:-1]:
        if any(character in part for character in "*?["):
            break
        root /= part
    return root
