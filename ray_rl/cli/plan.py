"""`ray-rl plan`: which role runs on which devices, and how a step divides, before anything is started."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_rl.cli.arguments import add_config

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands
    from ray_rl.config import RunConfig


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "plan",
        help="print the device groups and the arithmetic of a step, without torch",
        description="Prints the plan that training would place. Exit code 2 if it does not fit cluster.nodes.",
        epilog="example: ray-rl plan configs/grpo_addition_smollm2-135m_cpu.yaml train.workers=2",
    )
    add_config(parser)
    parser.set_defaults(command=print_plan)


def print_plan(arguments: argparse.Namespace) -> int:
    """Prints the plan of a configuration.

    Raises:
        ConfigError: with every problem, the roles' GPUs against `cluster.nodes` * `cluster.gpus_per_node` among them.
    """
    from ray_rl.config.load import load_config
    from ray_rl.config.rules import check
    from ray_rl.planner.plan import plan

    config = load_config(arguments.config, arguments.overrides)
    layout = plan(config)
    check(config, visible_gpus=layout.gpus)
    print(f"{arguments.config}: fits")
    for i, group in enumerate(layout.groups):
        device = f"{group.gpus} GPU" if group.gpus else f"{group.cpus:g} CPU"
        roles = ", ".join(f"{layout.workers[role]} x {role}" for role in group.roles)
        print(f"  device group {i}: {group.bundles} x {device}: {roles}")
    if layout.gpus:
        cluster = config.cluster
        print(f"  {layout.gpus} of {cluster.nodes} x {cluster.gpus_per_node} GPUs")
    for line in _step(config):
        print(f"  {line}")
    return 0


def _step(config: RunConfig) -> list[str]:
    """How the rollouts of a step divide over engines, optimizer steps and workers."""
    algorithm, train = config.algorithm, config.train
    rollouts = algorithm.prompts_per_step * algorithm.group_size
    per_update = rollouts // algorithm.minibatches
    longest = config.data.max_prompt_tokens + config.rollout.max_tokens
    micro_batch = max(longest, train.micro_batch_tokens)
    return [
        f"step: {algorithm.prompts_per_step} prompts x {algorithm.group_size} completions = {rollouts} rollouts, "
        f"about {rollouts / config.rollout.engines:g} on each of {config.rollout.engines} engines",
        f"update: {algorithm.optimizer_steps} optimizer steps of {per_update} rollouts, about "
        f"{per_update / train.workers:g} on each of {train.workers} workers",
        f"sequences: at most {longest} tokens; micro-batches of at most {micro_batch} tokens",
    ]
