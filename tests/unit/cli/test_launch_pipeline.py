"""Pipelines as jobs: `ray-rl render` and `ray-rl submit` with the file of a pipeline."""

import shlex
from pathlib import Path

import pytest

from ray_rl.cli.main import main
from tests.unit.launching.bash import called, options_of
from tests.unit.pipeline.conftest import RUN

PIPELINE = """\
name: rlhf
dir: /shared/runs
stages:
  - {name: sft, config: run.yaml}
  - {name: ppo, config: run.yaml, overrides: [run.steps=9, run.grace_s=300, "model.path={stage: sft}"]}
"""
GPUS = """\
run: {name: alone, steps: 4}
model: {path: Qwen/Qwen2.5-0.5B}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: grpo, kl: {coefficient: 0}}
cluster: {nodes: 1, gpus_per_node: 8}
train: {workers: 4}
rollout: {engines: 4}
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    Path("pipeline.yaml").write_text(PIPELINE)
    return tmp_path


def test_a_ray_job_runs_the_pipeline_whose_stages_join_its_cluster(project, capsys):
    assert main(["render", "ray-job", "pipeline.yaml", "ppo.run.seed=3", "launch.retries=1"]) == 0
    options, words = options_of(called("ray", capsys.readouterr().out, project).words)
    driver = ["ray-rl", "pipeline", "pipeline.yaml", "ppo.run.seed=3"]
    assert words == [*driver, "sft.cluster.address=auto", "ppo.cluster.address=auto"]
    assert options["--submission-id"] == "rlhf-1"
    assert '"length": "sft 4 steps, ppo 9 steps"' in options["--metadata-json"]
    assert '"RAY_JOB_STOP_WAIT_TIME_S": "315"' in options["--runtime-env-json"]  # the longest grace of the stages


def test_on_this_machine_every_stage_starts_a_cluster_of_its_own(project, capsys):
    assert main(["render", "local", "pipeline.yaml", "sft.cluster.address=auto"]) == 0
    words = called("ray-rl", capsys.readouterr().out, project).words
    assert words == ["pipeline", "pipeline.yaml", "sft.cluster.address=null"]


def test_slurm_gets_the_nodes_of_the_largest_stage_and_the_launch_file(capsys):
    Path("run.yaml").write_text(GPUS)
    Path("launch.yaml").write_text("queue: h100\nslurm: {warn_s: 400}\n")
    large = ["ppo.cluster.nodes=2", "ppo.train.workers=12"]
    assert main(["render", "slurm", "pipeline.yaml", *large, "--launch", "launch.yaml", "launch.retries=7"]) == 0
    text = capsys.readouterr().out
    for line in ("--job-name=rlhf", "--partition=h100", "--nodes=2", "--gpus-per-node=8"):
        assert f"#SBATCH {line}\n" in text
    assert "NODES=2 CPU_NODES=0 GPUS=8\n" in text
    assert "GRACE_S=300 RETRIES=7\n" in text
    joins = shlex.join(["sft.cluster.address=auto", "ppo.cluster.address=auto"])
    assert f"entrypoint() {{ exec ray-rl pipeline pipeline.yaml {shlex.join(large)} {joins}; }}\n" in text


def test_a_dry_run_plans_every_stage(capsys):
    Path("run.yaml").write_text(GPUS)
    words = ["submit", "ray-job", "pipeline.yaml", "--dry-run"]
    assert main(words) == 0
    assert "dry run: rlhf is valid and fits; nothing was submitted" in capsys.readouterr().err
    large = "ppo.model.path=Qwen/Qwen2.5-72B-Instruct"
    assert main([*words, large]) == 2
    assert "the run does not fit:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kuberay"], "pipeline.yaml: a RayJob of KubeRay has the configuration of one run, and this is the file of a"),
        (["ray-job", "dir=runs"], "dir=runs: a Ray job runs in a copy of the current folder"),
        (["ray-job", "ppo.launch.retries=1"], "stage ppo: its section launch differs from that of stage sft, and a "),
        (["ray-job", "launch.preflight=true"], "launch.preflight=true: the job of a pipeline checks no nodes; set"),
        (["slurm", "ppo.cluster.accelerator=gpu"], "stage ppo: cluster.accelerator=gpu, and stage sft has cpu; a "),
        (["ray-job", "ppo.model.path=./none"], "stage ppo: model.path=./none: no such model folder"),
        (["ray-job", "launch.retrys=1"], "stage sft: override 'launch.retrys=1': unknown key; did you mean launch.re"),
        (["ray-job", "pop.run.steps=1"], "override 'pop.run.steps=1': pop is not a stage; did you mean ppo.run.steps"),
    ],
)
def test_what_cannot_be_one_job_is_refused_with_what_to_change(words, message, capsys):
    backend, *overrides = words
    assert main(["submit", backend, "pipeline.yaml", *overrides, "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith(f"ray-rl: error: {message}")


def test_a_file_outside_of_the_current_folder_is_refused(project, capsys):
    assert main(["render", "ray-job", str(project / "pipeline.yaml")]) == 2
    assert "pipeline.yaml: must be inside the current folder, which is what the cluster gets" in capsys.readouterr().err
