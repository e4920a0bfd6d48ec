"""Inspects a node, in a process on that node.

The code is sent there by value (see `preflight.nodes`) and returns plain dictionaries: it must work on nodes with
another version of `ray_rl`, or without it. So it imports only the standard library.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

GIB = 2**30

NVIDIA_SMI_S = 20.0
"""Limit for nvidia-smi, which hangs if the GPU driver does."""

SEEN_S = 5.0
"""How long another client of a network file system may take to see a new file."""


class NodeProbe:
    """Inspects one node, in a separate process."""

    def look(self, packages: Mapping[str, Sequence[str]], runs: str) -> dict[str, Any]:
        """Returns versions, GPUs and free space.

        Args:
            packages: names with the distributions that provide them.
            runs: the folder of runs, which need not exist yet.
        """
        names, trouble = gpus()
        # Not tempfile.gettempdir(): it silently skips a full disk.
        folders = {
            "disk of runs": runs,
            "disk of TMPDIR": os.environ.get("TMPDIR", "/tmp"),
            "disk of ~/.cache": os.path.expanduser("~/.cache"),
        }
        return {
            "versions": versions(packages),
            "gpus": len(names),
            "gpu_trouble": trouble,
            "shared_memory": room("/dev/shm") if os.path.isdir("/dev/shm") else None,
            "disks": {name: room(folder) for name, folder in folders.items()},
        }

    def clock(self) -> float:
        """Returns the seconds since 1970 by this node's clock."""
        return time.time()

    def meet_canary(self, folder: str, theirs: str, content: str, own: str, answer: str) -> dict[str, str]:
        """Reads the driver's file and writes one for the driver; returns why either failed, or empty texts."""
        found = {"unread": await_content(os.path.join(folder, theirs), content), "unwritten": ""}
        try:
            # Write even if the driver's file is not visible, to find out whether the folder is writable.
            os.makedirs(folder, exist_ok=True)
            Path(folder, own).write_text(answer, encoding="ascii")
        except OSError as error:
            found["unwritten"] = str(error)
        return found

    def forget_canary(self, folder: str, own: str) -> None:
        """Removes the node's file if the folder is not shared with the driver."""
        Path(folder, own).unlink(missing_ok=True)
        if os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)


def await_content(path: str, content: str) -> str:
    """Waits up to `SEEN_S` for a file to have this content; returns why it does not, or an empty text."""
    deadline_s = time.monotonic() + SEEN_S
    while True:
        reason = _difference(path, content)
        if not reason or time.monotonic() > deadline_s:
            return reason
        time.sleep(0.1)


def _difference(path: str, content: str) -> str:
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        return str(error)
    return "" if text == content else f"{path} has other content than was written"


def versions(packages: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Returns versions of python, ray_rl (with a digest of its source) and packages; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "ray_rl": _own_version()}
    for name, distributions in packages.items():
        found[name] = next((version for name in distributions if (version := version_of(name)) is not None), None)
    return found


def version_of(distribution: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _own_version() -> str | None:
    """Returns our version with a digest of the importable source: between releases the version does not change."""
    found = importlib.util.find_spec("ray_rl")
    if found is None or found.origin is None:
        return None
    root = Path(found.origin).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    import ray_rl

    return f"{ray_rl.__version__}, source {digest.hexdigest()[:8]}"


def gpus() -> tuple[list[str], str]:
    """Returns the GPUs that nvidia-smi lists, one line each, and its error message if it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], ""
    try:
        answer = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=False)
    except subprocess.TimeoutExpired:
        return [], f"no answer in {NVIDIA_SMI_S:g} s"
    lines = [line for line in answer.stdout.splitlines() if line.startswith("GPU ")]
    said = " ".join((answer.stderr or answer.stdout).split())[:200] or f"exit code {answer.returncode}"
    return lines, said if answer.returncode != 0 else ""


def room(folder: str) -> dict[str, Any]:
    """Returns the space of the file system where a folder is or will be, and the nearest existing folder."""
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    usage = shutil.disk_usage(there)
    return {"at": str(there), "free_gib": usage.free / GIB, "total_gib": usage.total / GIB}
