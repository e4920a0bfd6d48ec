"""Who may read what a run writes: its owner alone, or the owner's group too, as the folder says that it is written to.

The run folder is made with the mode that `run.group_readable` asks for, and what is made in a folder follows that
folder; so processes on other nodes, and commands that come later, need not be told.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_GROUP_READS = stat.S_IRGRP


def make_folder(path: Path, *, exist_ok: bool = False, parents: bool = False) -> None:
    """Makes a folder for whom the folder around it is for.

    Raises:
        OSError: the file system refuses.
    """
    if exist_ok and path.is_dir():
        return
    path.mkdir(mode=0o700, exist_ok=exist_ok, parents=parents)
    if is_for_group(path.parent):
        path.chmod(0o750)


def open_file(path: Path, flags: int) -> int:
    """Opens a file, and makes it for whom its folder is for, whatever the umask; a descriptor.

    Raises:
        OSError: the file system refuses.
    """
    is_new = not path.exists()
    descriptor = os.open(path, flags, 0o600)
    if is_new and is_for_group(path.parent):
        os.fchmod(descriptor, 0o640)
    return descriptor


def is_for_group(folder: Path) -> bool:
    """Whether the group may read in a folder."""
    return bool(folder.stat().st_mode & _GROUP_READS)


def set_readers(root: Path, *, group: bool) -> None:
    """Lets the group read a run folder and all that is in it, or its owner alone; does nothing where that is so.

    Raises:
        OSError: the file system refuses.
    """
    if is_for_group(root) == group:
        return
    for folder, _, files in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if not path.is_symlink():
                mode = stat.S_IMODE(path.stat().st_mode)
                # Whoever searches a folder, or runs a file, may do so: x follows the owner's.
                path.chmod(mode & ~0o070 | (mode >> 3 & 0o050 if group else 0))
