"""One configuration, four renderings: what runs, for how long, on how many GPUs, in which environment."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ray_rl.cli.launch import job_of
from ray_rl.config.loading.load import load_config
from ray_rl.launching import local
from ray_rl.launching.job import ADDRESS, Job
from ray_rl.launching.kuberay import manifest as kuberay
from ray_rl.launching.ray_job import entrypoint as ray_job
from ray_rl.launching.slurm import script as slurm
from tests.unit.launching.bash import called, options_of

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPE = "grpo_math_qwen2.5-7b_16xh100.yaml"
GPUS = 16
LAUNCH = """\
image: registry.example.com/ray-rl@sha256:0123456789abcdef
queue: h100
cpus_per_node: 64
memory_gib_per_node: 512
environment: {NCCL_IB_HCA: "mlx5_0,mlx5_1", GREETING: "it's \\"me\\", $HOME"}
"""
OVERRIDES = ("run.dir=/runs", "data.system_prompt='say \"yes\", please'", "run.seed=3")


@dataclass(frozen=True)
class Rendering:
    """What a reader of a rendering finds in it."""

    command: list[str]
    """Of the driver, word for word."""
    length: str
    gpus: int | None
    """None where the rendering asks nobody for any."""
    environments: list[dict[str, str]]
    """Of every kind of process that the rendering starts."""


def read_local(text: str, folder: Path) -> Rendering:
    call = called("ray-rl", text, folder)
    (length,) = re.findall(r"\d+ steps", text)
    (gpus,) = re.findall(r"on (\d+) GPUs", text)
    return Rendering(["ray-rl", *call.words], length, int(gpus), [call.environment])


def read_ray_job(text: str, folder: Path) -> Rendering:
    options, command = options_of(called("ray", text, folder).words)
    metadata = json.loads(options["--metadata-json"])
    environment = json.loads(options["--runtime-env-json"])["env_vars"]
    return Rendering(command, metadata["length"], int(metadata["gpus"]), [environment])


def read_slurm(text: str, folder: Path) -> Rendering:
    (command,) = re.findall(r"^entrypoint\(\) \{ exec (.*); \}$", text, re.MULTILINE)
    (length,) = re.findall(r"\d+ steps", text)
    asked = dict(re.findall(r"^#SBATCH --(nodes|gpus-per-node)=(\d+)$", text, re.MULTILINE))
    exports = [shlex.split(line)[1] for line in re.findall(r"^export [A-Za-z_]\w*=.*$", text, re.MULTILINE)]
    environment = dict(export.split("=", 1) for export in exports)
    gpus = int(asked["nodes"]) * int(asked["gpus-per-node"])
    return Rendering(shlex.split(command), length, gpus, [environment])


def read_kuberay(text: str, folder: Path) -> Rendering:
    documents = {document["kind"]: document for document in yaml.safe_load_all(text)}
    (config,) = documents["ConfigMap"]["data"].values()
    spec = documents["RayJob"]["spec"]
    head, workers = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
    containers = [group["template"]["spec"]["containers"][0] for group in (head, *workers)]
    gpus = [
        group["replicas"] * int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        for group, container in zip(workers, containers[1:], strict=True)
    ]
    environments = [{entry["name"]: entry["value"] for entry in container["env"]} for container in containers]
    length = f"{yaml.safe_load(config)['run']['steps']} steps"
    return Rendering(shlex.split(spec["entrypoint"]), length, sum(gpus), environments)


BACKENDS: dict[str, tuple[Callable[[Job], str], Callable[[str, Path], Rendering]]] = {
    "local": (local.render, read_local),
    "ray-job": (ray_job.render, read_ray_job),
    "slurm": (slurm.render, read_slurm),
    "kuberay": (kuberay.render, read_kuberay),
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    Path(RECIPE).write_text((CONFIGS / RECIPE).read_text())
    Path("launch.yaml").write_text(LAUNCH)
    return job_of(load_config(RECIPE, OVERRIDES, launch="launch.yaml"), RECIPE, OVERRIDES)


@pytest.fixture(params=list(BACKENDS))
def rendering(request: pytest.FixtureRequest, made: Job, tmp_path: Path) -> Iterator[Rendering]:
    render, read = BACKENDS[request.param]
    yield read(render(made), tmp_path)


def test_the_driver_is_called_in_the_same_words(made: Job, rendering: Rendering):
    # A local run brings its own cluster; every other back end has one that the driver joins.
    joining = [word for word in rendering.command if not word.startswith("cluster.address=")]
    assert joining == ["ray-rl", "train", RECIPE, *OVERRIDES, "--resume", "auto"]
    assert rendering.command == list(made.entrypoint) or "cluster.address=null" in rendering.command


def test_only_the_local_run_starts_its_own_cluster(made: Job, tmp_path: Path):
    commands = {name: read(render(made), tmp_path).command for name, (render, read) in BACKENDS.items()}
    assert {name for name, command in commands.items() if ADDRESS in command} == {"ray-job", "slurm", "kuberay"}


def test_the_run_is_as_long(made: Job, rendering: Rendering):
    assert rendering.length == made.length == "200 steps"


def test_it_is_on_as_many_gpus(made: Job, rendering: Rendering):
    assert rendering.gpus == made.plan.gpus == GPUS


def test_every_process_has_the_environment_of_the_job(made: Job, rendering: Rendering):
    assert made.environment["GREETING"] == 'it\'s "me", $HOME'
    for environment in rendering.environments:
        assert made.environment.items() <= environment.items()
