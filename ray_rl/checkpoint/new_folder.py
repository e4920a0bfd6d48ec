"""Makes folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_rl.errors import UserError

PARTIAL = ".ray_rl.partial"
"""Name of the incomplete content inside a folder that exists already."""
OF_THE_VOLUME = {"lost+found", PARTIAL}
"""Entries that an empty folder may have: a mounted volume has the first."""


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Yields a folder to write into. It gets the name `to` at the end of the block, and is removed if the block fails.

    An existing empty folder is kept, because it may be a mounted volume, the target of a link, or the working directory
    of a shell: the files move into it, `config.json` last, because no loader accepts a model folder without it.

    Args:
        to: a path that does not exist, an empty folder, or a link to either.
    """
    folder = to.expanduser().resolve()
    exists = folder.is_dir()
    partial = folder / PARTIAL if exists else folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if exists:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(folder / path.name)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replaced_folder(to: Path, *, mark: str) -> Iterator[Path]:
    """Works like `new_folder`, and replaces an existing folder `to`, by two renames.

    Args:
        to: see `new_folder`.
        mark: name of a file that all folders written by us have. A folder with files but without this one belongs to
            somebody else: it is kept as `<name>.kept_<number>`.
    """
    folder = to.resolve()
    partial, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():  # the run ended and was extended; a kill must not leave a partial folder with this name
            is_ours = (folder / mark).is_file() or not any(folder.iterdir())
            folder.rename(replaced if is_ours else _unused(folder))
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unused(folder: Path) -> Path:
    number = 1
    while os.path.lexists(kept := folder.with_name(f"{folder.name}.kept_{number}")):
        number += 1
    return kept


def check_new(to: Path, *, outside: Path) -> None:
    """Checks that `new_folder` can make a folder.

    Args:
        to: the user's value of `--to`.
        outside: a folder that must not contain `to`.

    Raises:
        UserError: the folder is in use, or its parent is not writable.
    """
    folder = to.expanduser().resolve()
    try:
        exists = folder.exists()
    except OSError as error:
        raise UserError(f"--to {to}: {error.strerror}; give another folder") from None
    if exists and not folder.is_dir():
        raise UserError(f"--to {to}: is a file; give a folder that does not exist yet")
    if folder.is_relative_to(outside.resolve()):
        raise UserError(f"--to {to}: is inside {outside}; give a folder outside it")
    if folder.is_dir() and {path.name for path in folder.iterdir()} - OF_THE_VOLUME:
        raise UserError(f"--to {to}: the folder is not empty, and nothing is overwritten; give another or remove it")
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--to {to}: {place} is not a folder that you may write to; give another")
