"""File modes: the files of a run can be read by the owner only, or by the owner's group too.

The run folder gets the mode that `run.group_readable` asks for, and files follow the folder in which they are made. So
processes on other nodes, and later commands, need no setting.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_GROUP_READS = stat.S_IRGRP


def make_folder(path: Path, *, exist_ok: bool = False, parents: bool = False) -> None:
    """Makes a folder with the same readers as its parent folder.

    Raises:
        OSError: the file system refuses.
    """
    if exist_ok and path.is_dir():
        return
    path.mkdir(mode=0o700, exist_ok=exist_ok, parents=parents)
    if is_for_group(path.parent):
        path.chmod(0o750)


def open_file(path: Path, flags: int) -> int:
    """Opens a file and returns its descriptor. A new file has the same readers as its folder, whatever the umask.

    Raises:
        OSError: the file system refuses.
    """
    is_new = not path.exists()
    descriptor = os.open(path, flags, 0o600)
    if is_new and is_for_group(path.parent):
        os.fchmod(descriptor, 0o640)
    return descriptor


def is_for_group(folder: Path) -> bool:
    """Returns whether the group may read a folder."""
    return bool(folder.stat().st_mode & _GROUP_READS)


def set_readers(root: Path, *, group: bool) -> None:
    """Lets the group, or only the owner, read a run folder and everything in it. Idempotent.

    Raises:
        OSError: the file system refuses.
    """
    if is_for_group(root) == group:
        return
    for folder, _, files in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if not path.is_symlink():
                mode = stat.S_IMODE(path.stat().st_mode)
                # The group's execute bit follows the owner's, for searching folders and running files.
                path.chmod(mode & ~0o070 | (mode >> 3 & 0o050 if group else 0))
