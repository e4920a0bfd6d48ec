"""`ray-rl resume` continues a run from its newest checkpoint, or from an earlier one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.cli.arguments import add_overrides, remember
from ray_rl.cli.train import start
from ray_rl.config.run import RunConfig

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "resume",
        help="continue a run from its newest checkpoint, or from an earlier one",
        description="Continues a run from its newest complete checkpoint, or from that of --step. Prints the "
        "values that differ from those of the run, and refuses changes that do not fit the checkpoint.",
        epilog="examples: ray-rl resume runs/grpo-addition run.steps=60; ray-rl resume runs/grpo-addition --step 40",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="continue from the checkpoint of step N instead of the newest one; later checkpoints, records and exports "
        "are kept in a subfolder of the run folder",
    )
    add_overrides(parser, "run.steps=60")
    parser.set_defaults(command=resume, only_shows=True)


def resume(arguments: argparse.Namespace) -> int:
    """Checks the run and continues training.

    Raises:
        UserError: the folder is not a run folder or has no checkpoint, or values are wrong; nothing was started or
            written.
        RayRLError: the run failed.
    """
    config = in_folder(arguments.run, arguments.overrides)
    remember(arguments, config)
    start(config, resume="required", from_step=arguments.step)
    return 0


def in_folder(run: Path, overrides: list[str]) -> RunConfig:
    """Returns the configuration of a run folder with overrides, even if the folder was moved.

    Raises:
        UserError: the folder is not a run folder, or the overrides are wrong.
    """
    from ray_rl.config.loading.load import load_config
    from ray_rl.metrics.run_folder import config_file

    file = config_file(run)
    folder = run.expanduser().absolute()
    place = [f"run.dir={json.dumps(str(folder.parent))}", f"run.name={json.dumps(folder.name)}"]
    return load_config(file, [*overrides, *place])
