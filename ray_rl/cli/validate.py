"""`ray-rl validate`: every check of a configuration that needs no cluster, no model and no torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_rl.cli.arguments import add_config

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "validate",
        help="check a configuration, without torch, in under a second",
        description="Checks a configuration. The GPUs it asks for need not be in this machine.",
        epilog="example: ray-rl validate configs/grpo_addition_smollm2-135m_cpu.yaml train.workers=2",
    )
    add_config(parser)
    parser.set_defaults(command=validate)


def validate(arguments: argparse.Namespace) -> int:
    """Checks the configuration as for the machine that will run it, and says what it amounts to.

    Raises:
        ConfigError: with every problem.
    """
    from ray_rl.config.gpus import asked_gpus, visible_gpu_count
    from ray_rl.config.load import load_config
    from ray_rl.config.rules import check

    config = load_config(arguments.config, arguments.overrides)
    asks = asked_gpus(config)
    asked = sum(ask.gpus for ask in asks)
    check(config, visible_gpus=asked)
    algorithm = config.algorithm
    print(f"{arguments.config}: valid")
    print(
        f"  {config.run.steps} steps of {algorithm.prompts_per_step} prompts x {algorithm.group_size} completions, "
        f"{config.run.steps * algorithm.optimizer_steps} optimizer steps"
    )
    if config.cluster.accelerator == "cpu":
        print("  on CPU: " + ", ".join(f"{ask.role} {ask.gpus}" for ask in asks))
    else:
        print(f"  on {asked} GPUs: " + ", ".join(map(str, asks)))
        if config.cluster.address is None and visible_gpu_count() < asked:
            print(f"  note: this machine has {visible_gpu_count()} GPUs; train where they are, or set cluster.address")
    return 0
