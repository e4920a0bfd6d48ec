"""The command answers where only the base install is, and a clone does not hide the package that it installs."""

import shutil
import subprocess
import sys
import zipfile
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_packaging import wanted

ROOT = Path(__file__).parents[2]
CONFIG = "configs/grpo_addition_smollm2-135m_cpu.yaml"


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
