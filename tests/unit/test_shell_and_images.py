"""Every shell script and Dockerfile of the repository passes its linter, and images are what launchers need."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
CUDA = "nvidia/cuda:13.0.2-devel-ubuntu24.04"
"""The base of the GPU image, unless another is given."""
SHELL = re.compile(rb"#! *(/usr)?/bin/(env +)?(ba|da)?sh\b")


def files():
    """The files of the checkout, new ones included; in an unpacked archive, all below the root but for .venv."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


FRAGMENTS = {ROOT / "ray_rl/launching/slurm/body.sh"}
"""Parts of scripts: launch/slurm.sbatch has the whole script."""


def is_script(path):
    if path.suffix in {".sh", ".bash", ".sbatch"}:
        return True
    with path.open("rb") as file:
        return SHELL.match(file.readline(80)) is not None


def is_image(path):
    return path.name.split(".")[0] in {"Dockerfile", "Containerfile"}


def lint(*words):
    """The complaints of a linter, or an empty text."""
    done = subprocess.run([TOOLS / words[0], *words[1:]], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert (done.returncode == 0) == (done.stdout == "")
    return done.stdout


def shellcheck(*paths):
    return lint("shellcheck", "--format=gcc", "--external-sources", *paths)


def hadolint(*paths):
    return lint("hadolint", "--no-color", *paths)


def test_shellcheck_finds_nothing_in_any_script():
    scripts = [path for path in files() if is_script(path) and path not in FRAGMENTS]
    assert {ROOT / ".ci/run", ROOT / "docker/install.sh"} <= set(scripts)
    assert shellcheck(*scripts) == ""


def test_hadolint_finds_nothing_in_any_dockerfile():
    images = [path for path in files() if is_image(path)]
    assert {ROOT / "docker/Dockerfile.cpu", ROOT / "docker/Dockerfile.gpu"} <= set(images)
    assert hadolint(*images) == ""


@pytest.mark.parametrize("name", ["run.sh", "run.sbatch", "run"])
def test_a_fault_in_a_script_would_be_found(tmp_path, name):
    script = tmp_path / name
    script.write_text("#!/bin/bash\nrm -r $1/*\n")
    assert is_script(script)
    assert "SC2086" in shellcheck(script)


def test_a_fault_in_a_dockerfile_would_be_found(tmp_path):
    image = tmp_path / "Dockerfile.cpu"
    image.write_text("FROM debian:latest\nRUN cd /tmp\n")
    assert is_image(image)
    assert {"DL3007", "DL3003"} <= set(re.findall(r"DL\d+", hadolint(image)))


def words_of(name):
    """The instructions of a Dockerfile: ("FROM", "${BASE_IMAGE} AS packages"), ..."""
    text = (ROOT / "docker" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_an_image_takes_any_base_and_the_locked_packages_and_runs_whole_commands_as_a_user(accelerator):
    words = words_of(f"Dockerfile.{accelerator}")
    assert words[0] == ("ARG", f"BASE_IMAGE={'debian:12-slim' if accelerator == 'cpu' else CUDA}")
    assert next(rest for word, rest in words if word == "FROM").startswith("${BASE_IMAGE}")
    assert any(
        f"install.sh venv docker/requirements-{accelerator}.txt" in rest for word, rest in words if word == "RUN"
    )
    last = dict(words[-4:])
    assert last == {"USER": "10001", "WORKDIR": "/workspace", "ENTRYPOINT": "[]", "CMD": '["ray-rl", "--help"]'}


def test_the_gpu_image_is_of_the_cuda_that_its_torch_is_built_for():
    locked = (ROOT / "docker/requirements-gpu.txt").read_text()
    (runtime,) = re.findall(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", locked, flags=re.MULTILINE)
    assert CUDA.startswith(f"nvidia/cuda:{runtime}.")


def test_flash_attn_can_be_left_out_of_the_gpu_image_and_is_of_a_version_that_the_project_allows():
    words = words_of("Dockerfile.gpu")
    stages = {rest.partition(" AS ")[2] for word, rest in words if word == "FROM"}
    assert {"flash-attn-0", "flash-attn-1", "flash-attn", "nccl-tests"} <= stages
    (version,) = (rest.partition("=")[2] for word, rest in words if rest.startswith("FLASH_ATTN_VERSION="))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert Requirement(extras["flash-attn"][0]).specifier.contains(version)
