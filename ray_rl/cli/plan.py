"""`ray-rl plan` prints which role runs on which devices and whether the run fits, before anything is started."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_rl.cli.arguments import add_config
from ray_rl.errors import ConfigError

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands
    from ray_rl.config import RunConfig
    from ray_rl.planner.assess import Assessment
    from ray_rl.planner.gpus import ClusterShape
    from ray_rl.planner.throughput import Assumptions


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "plan",
        help="print the layout, the memory and the arithmetic of a step, without torch",
        description="Prints the plan that training would place: every worker's node and GPU, how a step divides, the "
        "memory of every role, the bytes of a publish, and whether it fits. If it does not fit, the exit code is 2 and "
        "changes that make it fit are printed.",
        epilog="example: ray-rl plan configs/ppo_math_qwen2.5-7b_16xh100.yaml --nodes 1 --gpu h200",
    )
    add_config(parser)
    parser.add_argument("--nodes", type=int, metavar="N", help="plan for N nodes instead of cluster.nodes")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="plan for N GPUs per node instead of cluster.gpus_per_node"
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="kind of GPU, or the start of its name: h100-80gb (default), 4090, a100-40gb, ..."
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="memory of a GPU; without --gpu, of an unknown kind"
    )
    parser.add_argument("--host-memory", type=float, metavar="GB", help="memory of a node; checked only if given")
    parser.add_argument(
        "--lengths",
        metavar="LENGTHS",
        help="tokens of completions: mean=600 (lognormal; also sigma= and prompt=), or a file with one length a line; "
        "default: all have rollout.max_tokens",
    )
    parser.add_argument("--rates", metavar="FILE", help="measured rates instead of shares of the GPU's data sheet")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="print a file for --rates instead: the rates of this machine in the dtype of the run (a minute, with "
        "torch), or, where CONFIG is a run folder, those of its phases",
    )
    parser.add_argument(
        "--optimise",
        action="store_true",
        help="print the fastest layouts that fit the GPUs instead (some seconds), each as words to append to the "
        "command; those that change what is learnt (rollout.max_staleness) are apart",
    )
    parser.set_defaults(command=print_plan)


def print_plan(arguments: argparse.Namespace) -> int:
    """Prints the plan of a configuration.

    Raises:
        ConfigError: the message has every problem, and changes that make the run fit.
    """
    if arguments.calibrate:
        from ray_rl.cli.calibrate import print_rates

        return print_rates(arguments)
    from ray_rl.config.loading.load import load_config
    from ray_rl.planner.assess import assess
    from ray_rl.planner.gpus import ClusterShape

    sizes = (("nodes", arguments.nodes), ("gpus_per_node", arguments.gpus_per_node))
    overrides = [f"cluster.{key}={value}" for key, value in sizes if value is not None]
    # A proposal of an earlier plan, pasted after the same options, comes later and wins.
    config = load_config(arguments.config, [*overrides, *arguments.overrides])
    _check_asks_for_gpus(config, arguments)
    cluster = ClusterShape.of(
        config, gpu=arguments.gpu, gpu_memory_gb=arguments.gpu_memory, host_memory_gb=arguments.host_memory
    )
    _check_all_but_nodes(config)
    assumed = _assumed(config, cluster, arguments)
    if arguments.optimise:
        from ray_rl.planner.search_report import search_lines

        for line in search_lines(config, cluster, assumed):
            print(line, flush=True)
        return 0
    _print(config, assess(config, cluster), assumed, name=arguments.config)
    return 0


def _assumed(config: RunConfig, cluster: ClusterShape, arguments: argparse.Namespace) -> Assumptions:
    """Returns the lengths and rates that the options give.

    Raises:
        ConfigError: an option has no meaning, for this run or at all.
    """
    from ray_rl.planner.lengths import parse_lengths
    from ray_rl.planner.memory import Bounds
    from ray_rl.planner.rates import Rates, read_rates
    from ray_rl.planner.throughput import Assumptions

    if arguments.lengths is not None and config.is_offline:
        raise ConfigError(
            f"--lengths {arguments.lengths}: algorithm.kind={config.algorithm.kind} samples no completions; "
            "leave the option out"
        )
    lengths = parse_lengths(arguments.lengths, maximum=config.most_tokens)
    if arguments.rates is None:
        return Assumptions(lengths)
    on_gpu, speed = config.cluster.accelerator == "gpu", cluster.gpu.speed
    base = Rates.of(speed, Bounds(config).dtype) if on_gpu and speed is not None else None
    return Assumptions(lengths, read_rates(arguments.rates, base))


def print_plan_of(config: RunConfig) -> None:
    """Prints the plan on the hardware of the configuration, or that there is none for models of unknown shape.

    Raises:
        ConfigError: the run does not fit.
    """
    from ray_rl.planner.assess import assess, unknown_models
    from ray_rl.planner.gpus import ClusterShape
    from ray_rl.planner.throughput import ASSUMED

    unknown = unknown_models(config)
    if unknown:
        print(f"no plan: the shape of {', '.join(unknown)} is not known, so that memory cannot be counted")
    else:
        _print(config, assess(config, ClusterShape.of(config)), ASSUMED, name="plan")


def _print(config: RunConfig, assessment: Assessment, assumed: Assumptions, *, name: str) -> None:
    from ray_rl.planner.report import report, require_fit, verdict

    print(f"{name}: {verdict(assessment)}")
    print("\n".join(report(config, assessment, assumed)))
    require_fit(config, assessment)


def _check_asks_for_gpus(config: RunConfig, arguments: argparse.Namespace) -> None:
    """Refuses options about GPUs for a run on CPU."""
    given = [name for name in ("gpu", "gpu_memory", "gpus_per_node") if vars(arguments)[name] is not None]
    if given and config.cluster.accelerator == "cpu":
        raise ConfigError(
            f"--{given[0].replace('_', '-')} {vars(arguments)[given[0]]}: the run is on CPU "
            "(cluster.accelerator=cpu); add cluster.accelerator=gpu to plan it on GPUs, or leave the option out"
        )


def _check_all_but_nodes(config: RunConfig) -> None:
    """Checks the rules with more nodes than needed, because the plan checks the number of nodes."""
    from ray_rl.config.gpus import needed_gpus
    from ray_rl.config.rules.check import check

    asked = needed_gpus(config)
    cluster = config.cluster.model_copy(update={"nodes": max(asked, config.cluster.nodes)})
    check(config.model_copy(update={"cluster": cluster}), visible_gpus=asked)
