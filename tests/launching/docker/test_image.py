"""The steps of docker/Dockerfile.cpu, run for real, and what is in the image afterwards."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.launching.docker.buildah import Buildah, missing

ROOT = Path(__file__).parents[3]
IMAGE = "localhost/ray-rl:cpu"
CONFIG = "/opt/ray-rl/configs/grpo_addition_smollm2-135m_cpu.yaml"
BUILD_S = 1200.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.skipif(bool(missing()), reason=str(missing()))]


@dataclass
class Image:
    """The image, and one container of it for all tests."""

    buildah: Buildah
    container: str

    def run(self, *words: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """A whole command, as `docker run` and pods give it."""
        options = ["--isolation", "chroot", *([] if user is None else ["--user", user])]
        return self.buildah.tried("run", *options, self.container, "--", *words, timeout_s=240)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    buildah = Buildah(tmp_path_factory.mktemp("images"))
    try:
        buildah.bootstrap()
        buildah.build(IMAGE, file=ROOT / "docker/Dockerfile.cpu", context=ROOT, timeout_s=BUILD_S)
        yield Image(buildah, buildah("from", IMAGE, timeout_s=300).strip())
    finally:
        buildah.close()


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def canonical(pin: str) -> str:
    name, _, version = pin.partition("==")
    return f"{canonicalize_name(name)}=={version}"


def test_the_user_is_not_root_and_may_write_where_runs_go(image: Image):
    said = image.buildah.configuration(IMAGE)
    assert (said["User"], said["WorkingDir"], said["Cmd"]) == ("10001", "/workspace", ["ray-rl", "--help"])
    assert not said.get("Entrypoint")
    assert printed(image.run("sh", "-c", "id -u; pwd; touch run && rm run")) == "10001\n/workspace"


def test_any_other_user_may_write_there_too_and_nobody_may_change_the_packages(image: Image):
    assert printed(image.run("sh", "-c", "id -u; touch other && rm other", user="4242:4242")) == "4242"
    for user in ("10001", "4242:4242"):
        assert image.run("touch", "/opt/ray-rl/venv/lib/new", user=user).returncode == 1


def test_the_image_has_the_locked_packages_and_nothing_else(image: Image):
    lines = (ROOT / "docker/requirements-cpu.txt").read_text().splitlines()
    locked = {line for line in lines if "==" in line and not line.startswith("#")}
    listing = (
        "from importlib.metadata import distributions as d\nfor one in d(): print(one.name, one.version, sep='==')"
    )
    installed = {canonical(line) for line in printed(image.run("python", "-c", listing)).splitlines()}
    own = {line.partition("==")[0] for line in installed - locked}
    assert locked - installed == set()
    assert own <= {"pip", "setuptools", "uv", "ray-rl"}


def test_the_command_and_its_checks_work(image: Image):
    assert "train" in printed(image.run("ray-rl", "--help"))
    assert printed(image.run("ray-rl", "validate", CONFIG))
    assert printed(image.run("ray-rl", "doctor"))


def test_every_library_of_a_run_imports(image: Image):
    libraries = "import torch, ray, deepspeed; from vllm.v1.engine import async_llm; print(torch.__version__)"
    assert printed(image.run("python", "-c", libraries)).splitlines()[-1].endswith("+cpu")


def test_a_login_shell_without_an_environment_finds_ray_as_in_the_pods_of_kuberay(image: Image):
    found = printed(image.run("env", "-i", "/bin/bash", "-lc", "command -v wget ray ray-rl python")).splitlines()
    assert found[0].endswith("/wget")
    assert found[1:] == [f"/opt/ray-rl/venv/bin/{name}" for name in ("ray", "ray-rl", "python")]


def test_a_run_trains_in_the_image(image: Image):
    small = [
        "algorithm.prompts_per_step=2",
        "algorithm.group_size=2",
        "rollout.max_tokens=8",
        "checkpoint.export=false",
    ]
    # `timeout` ends the driver, and the driver its cluster, before `run` would leave both behind.
    done = image.run("timeout", "200", "ray-rl", "train", CONFIG, "run.name=one", "run.steps=1", *small)
    assert printed(done)
    assert printed(image.run("cat", "runs/one/metrics.jsonl")).startswith('{"step": 1, "version": 1,')
