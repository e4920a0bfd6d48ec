"""What bit-identical runs rule out. Loads without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ray_rl.config.data import ReasoningGym
from ray_rl.config.run import RunConfig


def determinism_rules(config: RunConfig) -> Iterator[str]:
    """One message for every setting under which two runs of one seed differ."""
    if not config.run.deterministic:
        return
    if config.cluster.accelerator != "cpu":
        yield (
            "run.deterministic=true: the kernels of GPUs add in an order of their own; set cluster.accelerator=cpu, or "
            "run.deterministic=false"
        )
    if config.model.dtype == "bfloat16":
        yield (
            "run.deterministic=true: in model.dtype=bfloat16 what is sampled beside a completion changes its tokens; "
            "set model.dtype=float32"
        )
    if config.rollout.max_staleness > 0:
        yield (
            f"run.deterministic=true: with rollout.max_staleness={config.rollout.max_staleness} the clock decides "
            "which version samples a token; set rollout.max_staleness=0"
        )
    if isinstance(config.data, ReasoningGym) and not os.environ.get("PYTHONHASHSEED", "").isdecimal():
        yield (
            "run.deterministic=true: some tasks of data.kind=reasoning_gym go through sets, whose order differs from "
            "process to process; export PYTHONHASHSEED=0 before `ray-rl`, also where the run is resumed"
        )
