"""`ray-rl validate` runs the checks of `ray-rl train` without Ray: the quick ones by default, all with --full."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_rl.app.before_start import check_before_start, unreadable_data
from ray_rl.cli.arguments import add_config, add_resume, say_progress
from ray_rl.preflight.functions import uncalled_functions

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands
    from ray_rl.config import RunConfig


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "validate",
        help="check a configuration, its data and its functions, without torch",
        description="Checks a configuration as `train` does before it starts Ray. This machine "
        "needs no GPUs for it. Without --full it reads the rows of files and imports your functions; with --full it "
        "also reads the rows of the hub and of data.function, loads the tokenizer and the configuration of every "
        "model, and looks for the packages that a run needs.",
        epilog="example: ray-rl validate configs/grpo_addition_smollm2-135m_cpu.yaml train.workers=2",
    )
    add_config(parser)
    add_resume(parser)
    parser.add_argument("--full", action="store_true", help="run every check of `train`; takes some seconds")
    parser.set_defaults(command=validate)


def validate(arguments: argparse.Namespace) -> int:
    """Checks the configuration for the machine that will run it, and prints a summary.

    Raises:
        UserError: `train` would refuse the configuration.
    """
    from ray_rl.config.gpus import asked_gpus, visible_gpu_count
    from ray_rl.config.loading.load import load_config
    from ray_rl.config.rules.adapter import learning_rate_advice

    config = load_config(arguments.config, arguments.overrides)
    asks = asked_gpus(config)
    asked = sum(ask.gpus for ask in asks)
    remarks: list[str] = []
    check_before_start(
        config,
        resume=arguments.resume,
        visible_gpus=asked,
        is_full=arguments.full,
        taken=remarks.append,
        progress=say_progress,
    )
    print(f"{arguments.config}: valid")
    print(f"  {_arithmetic(config)}")
    if config.cluster.accelerator == "cpu":
        print("  on CPU: " + ", ".join(f"{ask.role} {ask.gpus}" for ask in asks))
    else:
        print(f"  on {asked} GPUs: " + ", ".join(map(str, asks)))
        if config.cluster.address is None and visible_gpu_count() < asked:
            print(f"  note: this machine has {visible_gpu_count()} GPUs; train where they are, or set cluster.address")
    for text in (*remarks, *learning_rate_advice(config)):
        print(f"  note: {text}")
    missing = unreadable_data(config)
    if missing is not None:
        print(f"  note: the rows were not read, as {missing} is not installed here")
    uncalled = [] if config.is_offline else uncalled_functions(config.online)
    if uncalled:
        print(f"  note: {' and '.join(uncalled)} not called, as torch is not installed here")
    _print_unchecked(config, is_full=arguments.full)
    return 0


def _arithmetic(config: RunConfig) -> str:
    """Returns the length of the run and the sizes of a step, in words."""
    if config.is_offline:
        noun = "pairs" if config.offline.rows_per_example == 2 else "examples"
        return f"{config.run.length}, in optimizer steps of {config.offline.batch_size} {noun}"
    algorithm = config.online
    updates = config.steps * algorithm.optimizer_steps
    return (
        f"{config.run.length} of {algorithm.prompts_per_step} prompts x {algorithm.group_size} completions, "
        f"{updates} optimizer step{'s' if updates > 1 else ''}"
    )


def _print_unchecked(config: RunConfig, *, is_full: bool) -> None:
    """Prints what was not checked, and what checks it."""
    from ray_rl.app.data_checks import are_far
    from ray_rl.config.data import CustomSource, Mixture
    from ray_rl.config.rewards import CustomReward

    if not is_full:
        match config.data:
            case CustomSource():
                rows = "rows of data.function, "
            case Mixture():
                rows = "rows of the hub and of functions, "
            case _:
                rows = "rows of the hub, "
        print(
            f"  not checked: {rows if are_far(config.data) else ''}tokenizer, models and installed packages; add --full"
        )
    functions = [f"rewards[{i}].function" for i, each in enumerate(config.rewards) if isinstance(each, CustomReward)]
    if functions:
        pronoun = "it" if len(functions) == 1 else "them"
        print(f"  not called: {', '.join(functions)}; the first step of `train` calls {pronoun}")
