"""`ray-rl train`: every check first, then the run."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ray_rl.cli.arguments import add_config
from ray_rl.errors import UserError

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands
    from ray_rl.config.run import RunConfig

Resume = Literal["auto", "required"]
"""Whether a run goes on if it can, or must."""

NEEDED = ("torch", "transformers", "ray", "deepspeed", "vllm")
"""Modules that a run imports and the base install lacks."""


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "train",
        help="train; the run folder is <run.dir>/<run.name>",
        description="Trains. Wrong input ends with exit code 2 before anything is started or written.",
        epilog="example: ray-rl train configs/grpo_addition_smollm2-135m_cpu.yaml run.name=first run.steps=3",
    )
    add_config(parser)
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="auto: if the run folder is there already, go on from its newest checkpoint; for jobs that are started "
        "again after exit code 75 or a crash",
    )
    parser.set_defaults(command=train)


def train(arguments: argparse.Namespace) -> int:
    """Loads the configuration and trains; see `start`."""
    from ray_rl.config.load import load_config

    start(load_config(arguments.config, arguments.overrides), resume=arguments.resume)
    return 0


def start(config: RunConfig, *, resume: Resume | None) -> None:
    """Checks configuration, run folder, installation and data, then trains.

    Args:
        config: of the run.
        resume: None: the run folder must not exist. auto: it may. required: it must, with a checkpoint.

    Raises:
        UserError: the input is wrong; nothing was started or written.
        RayRLError: the run failed.
    """
    from ray_rl.config.rules import check, check_run_folder_is_free

    check(config)
    goes_on = resume is not None and (Path(config.run.dir).expanduser() / config.run.name).is_dir()
    if not goes_on:
        check_run_folder_is_free(config)
    check_installed()

    from ray_rl.config.known import PACKAGED_MODELS
    from ray_rl.data.preflight import check_data
    from ray_rl.models.packaged import cached_folder

    model = config.model.path
    check_data(config, model_folder=cached_folder(model) if model in PACKAGED_MODELS else Path(model).expanduser())

    from ray_rl.loops.build import run_training

    run_training(config, resume=resume if goes_on else None)


def check_installed() -> None:
    """Checks that what a run imports is installed, without importing it.

    Raises:
        UserError: a package is missing.
    """
    missing = [module for module in NEEDED if find_spec(module) is None]
    if missing:
        raise UserError(
            f"training needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "pip install -r docker/requirements-cpu.txt (or -gpu.txt), then see `ray-rl doctor`"
        )
