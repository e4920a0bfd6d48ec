"""Jobs for the tests of launching."""

from pathlib import Path

import yaml

from ray_rl.cli.launch import job_of
from ray_rl.config.loading.load import load_config
from ray_rl.config.run import RunConfig
from ray_rl.launching.job import Job
from tests.algorithm import algorithm

SHIPPED = "configs/grpo_math_qwen2.5-7b_16xh100_kuberay.yaml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""That of libyaml, where PyYAML has it, takes a fifth of the time."""
IMAGE = "registry.example/ray-rl@sha256:" + "0" * 64


def job(*overrides: str, name: str = "math", path: str = "configs/run.yaml", **launch) -> Job:
    """Of 2 nodes with 8 GPUs, on a claim at /runs; sections of `launch` are merged over those here."""
    kuberay = launch.pop("kuberay", {})
    config = RunConfig.model_validate(
        {
            "run": {
                "name": name,
                "steps": 10,
                "dir": launch.pop("dir", "/runs"),
                "grace_s": launch.pop("grace_s", 90.5),
            },
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "train": {"workers": 8},
            "rollout": {"engines": 8},
            "cluster": {"nodes": 2, "gpus_per_node": 8, **launch.pop("cluster", {})},
            "launch": {
                "image": IMAGE,
                "cpus_per_node": 64,
                "memory_gib_per_node": 512,
                **launch,
                "kuberay": kuberay,
            },
        }
    )
    return job_of(config, path, overrides)


def shipped(root: Path) -> Job:
    """The job of the recipe for Kubernetes."""
    return job_of(load_config(root / SHIPPED), SHIPPED)


def documents(text: str) -> dict[str, dict]:
    """Rendered documents by kind."""
    return {document["kind"]: document for document in yaml.load_all(text, Loader=LOADER)}
