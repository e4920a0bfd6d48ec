"""The rules of deterministic runs. Loads without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ray_rl.config.data import ReasoningGym
from ray_rl.config.run import RunConfig


def determinism_rules(config: RunConfig) -> Iterator[str]:
    """Yields one message for every setting that makes two runs with the same seed differ."""
    if not config.run.deterministic:
        return
    if config.cluster.accelerator != "cpu":
        yield (
            "run.deterministic=true: GPU kernels add numbers in varying order; set cluster.accelerator=cpu, or "
            "run.deterministic=false"
        )
    if config.model.dtype == "bfloat16":
        yield (
            "run.deterministic=true: with model.dtype=bfloat16, the tokens of a completion depend on what else is in "
            "its batch; set model.dtype=float32"
        )
    if config.rollout.max_staleness > 0:
        yield (
            f"run.deterministic=true: with rollout.max_staleness={config.rollout.max_staleness} timing decides "
            "which version of the weights samples a token; set rollout.max_staleness=0"
        )
    if isinstance(config.data, ReasoningGym) and not os.environ.get("PYTHONHASHSEED", "").isdecimal():
        yield (
            "run.deterministic=true: some tasks of data.kind=reasoning_gym iterate over sets, whose order differs "
            "between processes; export PYTHONHASHSEED=0 before `ray-rl`, also to resume the run"
        )
