"""Stores checkpoints on disk: each appears complete or not at all, and `latest` finds the newest one that verifies.

    checkpoints/
    |-- step_12/             complete
    |   |-- manifest.json    every file with its size and SHA-256
    |   `-- ...              files that the callers wrote, in any sub-folders
    |-- .step_14.writing/    between begin and commit, or left by a kill in between
    |-- .step_12.replaced/   set aside while a new step 12 takes its name; put back if there is no new one
    `-- .step_8.removing/    being deleted

Two rules make a kill at any moment harmless. Content is on disk before a rename makes it visible, and the new name is
on disk before the files that it replaces are removed. Every change of a folder's state is one rename inside
`checkpoints/`, so a kill leaves no partial `step_<N>`; the manifest detects later damage by the disk.
One process owns a store; other processes write only into the folder that `begin` returns. Nothing is unpickled here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ray_rl.errors import CheckpointError
from ray_rl.metrics.modes import make_folder

MANIFEST = "manifest.json"

_State = Literal["complete", "writing", "replaced", "removing"]
_THREADS = 8
"""Threads for flushing and hashing, which release the interpreter lock; a single core would delay training."""
_WORTH_THREADS_BYTES = 2**24
"""Smaller checkpoints are hashed faster without threads on a busy machine."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was just committed or has just been verified."""

    step: int
    folder: Path


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`; made when the first checkpoint begins.
        keep_last: how many of the newest checkpoints are kept, >= 1.
        keep_every: checkpoints at multiples of this step are kept too, >= 1; None keeps no further ones.
    """

    def __init__(self, folder: Path, *, keep_last: int, keep_every: int | None) -> None:
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep_last={keep_last}, keep_every={keep_every}: must be >= 1; keep_every may be None")
        self._folder = folder.absolute()  # workers use these paths and have another working directory
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._rejected: set[int] = set()

    def begin(self, step: int) -> Path:
        """Makes an empty folder, which only this user can enter, into which every worker writes its files.

        Removes files that earlier kills have left, including those of the same step. Only one checkpoint is written at
        a time: a folder of another step that was begun and never committed is removed, too.

        Raises:
            CheckpointError: the file system refuses.
        """
        if step < 0:
            raise ValueError(f"step={step}: must be >= 0")
        writing = self._path(step, "writing")
        with disk_errors_explained(self._folder):
            if not self._folder.is_dir():
                make_folder(self._folder, parents=True)
                _flush(self._folder.parent)
            self._clean()
            for leftover in self._steps_that_are("writing"):
                self._remove(leftover, "writing")
            make_folder(writing)
        return writing

    def commit(self, step: int, *, keep: int | None = None) -> Checkpoint:
        """Flushes everything written since `begin` to disk, gives it its name, and then removes old checkpoints.

        Step `keep` stays. A checkpoint of the same step is replaced: it is set aside before and deleted after, and a
        kill in between leaves one of the two. After this call, `latest` finds this step or a later one.

        Raises:
            CheckpointError: nothing was written, or the file system refuses. The folder is removed, and earlier
                checkpoints are untouched.
        """
        try:
            _seal(self._path(step, "writing"), step)
            self._publish(step)
        except CheckpointError:
            self.abandon(step)
            raise
        self._rejected.discard(step)
        with disk_errors_explained(self._folder):
            for old in self._outdated(step, keep=keep):
                self._remove(old)
        return Checkpoint(step, self._path(step))

    def abandon(self, step: int) -> None:
        """Removes the folder of a checkpoint that was begun; does nothing without one.

        Raises nothing: it is called after another failure, and the next `begin` tries again.
        """
        with suppress(OSError, CheckpointError):
            self._put_back()
            if self._path(step, "writing").exists():
                self._remove(step, "writing")

    def latest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """Returns the newest checkpoint that verifies, or None.

        Args:
            note: called for each newer checkpoint that is skipped, with a message: folder, file, and what is wrong.
        """
        self._put_back()
        for step in reversed(self._steps_that_are("complete")):
            try:
                return verified(self._path(step), step)
            except CheckpointError as error:
                self._rejected.add(step)
                note(f"{error}; the checkpoint is passed over for the one before")
        return None

    def load(self, step: int) -> Checkpoint:
        """Returns the checkpoint of this step.

        Raises:
            CheckpointError: there is no such checkpoint, or it does not verify.
        """
        self._put_back()
        folder = self._path(step)
        others = ", ".join(str(other) for other in self.steps() if other != step)
        remedy = f"the other steps are {others}" if others else "there is no other checkpoint"
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint; {remedy}")
        try:
            return verified(folder, step)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {remedy}") from error

    def steps(self) -> list[int]:
        """Returns the steps with a complete folder and a manifest, ascending. Does not verify their files."""
        return [step for step in self._steps_that_are("complete") if (self._path(step) / MANIFEST).is_file()]

    def _publish(self, step: int) -> None:
        visible = self._path(step)
        with disk_errors_explained(self._folder):
            self._clean()
            if visible.exists():
                os.rename(visible, self._path(step, "replaced"))
            os.rename(self._path(step, "writing"), visible)
            _flush(self._folder)
            self._clean()

    def _outdated(self, newest: int, *, keep: int | None) -> list[int]:
        """Returns the steps that can be removed after `newest` is committed.

        Later steps are kept: the run went back to before them, so some are corrupt. They do not count as the newest
        ones, because otherwise they would displace the new checkpoint. Nor do those that `latest` rejected.
        """
        past = [step for step in self.steps() if step <= newest]
        kept = [step for step in past if step not in self._rejected][-self._keep_last :]
        milestones = [step for step in past if self._keep_every is not None and step % self._keep_every == 0]
        return [step for step in past if step not in {*kept, *milestones, keep}]

    def _put_back(self) -> None:
        """Completes what a kill interrupted: a replaced checkpoint gets its name back, a removal is finished."""
        with disk_errors_explained(self._folder):
            for step in self._steps_that_are("replaced"):
                if not self._path(step).exists():
                    os.rename(self._path(step, "replaced"), self._path(step))
        for step in self._steps_that_are("removing"):
            shutil.rmtree(self._path(step, "removing"), ignore_errors=True)

    def _clean(self) -> None:
        self._put_back()
        for step in self._steps_that_are("replaced"):
            self._remove(step, "replaced")

    def _remove(self, step: int, state: _State = "complete") -> None:
        """Renames and then deletes a folder, so that a partly deleted one never looks like a checkpoint.

        Files that cannot be deleted, because NFS keeps a file that another node has open, are left for the next time.
        """
        removing = self._path(step, "removing")
        shutil.rmtree(removing, ignore_errors=True)
        os.rename(self._path(step, state), removing)
        _flush(self._folder)
        shutil.rmtree(removing, ignore_errors=True)

    def _path(self, step: int, state: _State = "complete") -> Path:
        return self._folder / (f"step_{step}" if state == "complete" else f".step_{step}.{state}")

    def _steps_that_are(self, state: _State) -> list[int]:
        with disk_errors_explained(self._folder):
            names = os.listdir(self._folder) if self._folder.is_dir() else []
        numbers = {int(match[1]) for name in names if (match := re.search("step_([0-9]+)", name))}
        return sorted(step for step in numbers if self._path(step, state).name in names)


@contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into an error with everything that is needed to act on it.

    Args:
        path: the file that is written; named if the error itself names none.

    Raises:
        CheckpointError: the message names the path, the reason, the free space on that file system, and what to do.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = "free some room or lower checkpoint.keep_last" if full else "check that the folder can be written to"
        raise CheckpointError(
            f"{error.filename or path}: {error.strerror or error}; {_room(path)} on that file system; {remedy}, "
            "then resume: the checkpoints before this one are untouched"
        ) from error


def write_json(path: Path, value: object) -> None:
    """Writes small state as JSON, in a folder that `begin` returned or below it; `commit` flushes it to disk.

    Raises:
        CheckpointError: the file system refuses.
        ValueError: the value holds nan or inf, which JSON does not have.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Returns the value that `write_json` wrote, with tuples as lists and keys as strings.

    Raises:
        CheckpointError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); resume from another checkpoint") from error


def _stays_inside(name: str) -> str:
    name.encode()  # UnicodeEncodeError, a ValueError: JSON cannot hold this name
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name != str(path) or name in {".", MANIFEST}:
        raise ValueError(f"must be a path inside the checkpoint, and not {MANIFEST}")
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _File(_Strict):
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Manifest(_Strict):
    format_version: int = Field(ge=1, le=1)  # not Literal[1], which is equal to True
    step: int = Field(ge=0)
    files: dict[Annotated[str, AfterValidator(_stays_inside)], _File] = Field(min_length=1)


def _seal(folder: Path, step: int) -> None:
    """Writes the manifest, and flushes every file and folder; their order does not matter yet."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; begin({step}) makes it before anything is written")
    with disk_errors_explained(folder):
        files = _regular_files(folder)
        entries = dict(zip(files, _in_threads(_flush_and_hash, list(files.values())), strict=True))
    if not files:
        raise CheckpointError(
            f"{folder}: no file was written to it; if workers are on other nodes, set run.dir to a folder they share"
        )
    try:
        manifest = _Manifest(format_version=1, step=step, files=entries)
    except ValidationError as error:
        raise CheckpointError(f"{folder}: {_first_complaint(error)}; write it under another name") from error
    with disk_errors_explained(folder / MANIFEST):
        (folder / MANIFEST).write_bytes(manifest.model_dump_json(indent=1).encode())
        _flush(folder / MANIFEST)
        for inner, _, _ in os.walk(folder, topdown=False):
            _flush(Path(inner))


def verified(folder: Path, step: int) -> Checkpoint:
    """Returns the checkpoint; raises CheckpointError for the first difference between the folder and its manifest."""
    try:
        files = _regular_files(folder)
        manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        if manifest.step != step:
            raise CheckpointError(f"{folder}: {MANIFEST}: step {step} expected, {manifest.step} seen")
        for problem in _differences(manifest.files, files):
            raise CheckpointError(f"{folder}: {problem}")
        return Checkpoint(step, folder)
    except ValidationError as error:
        raise CheckpointError(f"{folder}: {MANIFEST}: {_first_complaint(error)}") from error
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.filename or 'a file'}: cannot be read ({error.strerror})") from error


def _differences(expected: dict[str, _File], files: dict[str, Path]) -> Iterator[str]:
    """Yields the differences, the cheap checks first: terabytes are hashed only if the sizes are right."""
    for name in sorted(expected.keys() - files.keys()):
        yield f"{name}: is missing; {expected[name].size_bytes} bytes expected"
    for name in sorted(files.keys() - expected.keys() - {MANIFEST}):
        yield f"{name}: is not in {MANIFEST}; it was written after the commit"
    for name, file in expected.items():
        if (size_bytes := files[name].stat().st_size) != file.size_bytes:
            yield f"{name}: {file.size_bytes} bytes expected, {size_bytes} seen"
    seen = _in_threads(_hash, [files[name] for name in expected])
    for (name, file), found in zip(expected.items(), seen, strict=True):
        if found.sha256 != file.sha256:
            yield f"{name}: SHA-256 {file.sha256} expected, {found.sha256} seen"


def _regular_files(folder: Path) -> dict[str, Path]:
    """Returns every file below the folder by its relative path. Refuses links: their targets are not in the folder."""
    files: dict[str, Path] = {}
    folders = [folder]
    while folders:
        for path in folders.pop().iterdir():
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise CheckpointError(f"{folder}: {relative}: is no regular file; a checkpoint holds copies, not links")
            if path.is_dir():
                folders.append(path)
            else:
                files[relative] = path
    return dict(sorted(files.items()))


def _in_threads(function: Callable[[Path], _File], paths: list[Path]) -> Iterator[_File]:
    is_large = sum(path.stat().st_size for path in paths) >= _WORTH_THREADS_BYTES
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, paths) if is_large else map(function, paths)


def _flush_and_hash(path: Path) -> _File:
    _flush(path)
    return _hash(path)


def _hash(path: Path) -> _File:
    try:
        with path.open("rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256")
            return _File(size_bytes=file.tell(), sha256=digest.hexdigest())
    except OSError as error:
        error.filename = str(path)  # read, unlike open, does not say it
        raise


def _flush(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk. Ignores folders that cannot be flushed, as PostgreSQL does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.EBADF}):
            raise
    finally:
        os.close(descriptor)


def _first_complaint(error: ValidationError) -> str:
    """Returns Pydantic's first error on one line, with its value."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "content"
    return f"{place}: {first['msg']}, {repr(first['input'])[:100]} seen"


def _room(path: Path) -> str:
    with suppress(OSError):
        room = os.statvfs(next(folder for folder in (path, *path.parents) if folder.exists()))
        return f"{room.f_bavail * room.f_frsize} bytes and {room.f_favail} inodes free"
    return "an unknown number of bytes free"
