"""`ray-rl export`: the trained policy as a folder in Hugging Face format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "export",
        help="copy the trained policy out of a run folder, in Hugging Face format",
        description="Copies the final policy out of a run folder, in Hugging Face format.",
        epilog="example: ray-rl export runs/grpo-addition --to my-model --dtype bfloat16",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder with an export/ folder in it")
    parser.add_argument("--to", metavar="DIR", type=Path, required=True, help="folder to make; never overwritten")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="convert the weights; default: as they are")
    parser.set_defaults(command=export)


def export(arguments: argparse.Namespace) -> int:
    """Copies the export.

    Raises:
        UserError: there is no complete export, or the target is in use.
    """
    from ray_rl.checkpoint.export_folder import export_run

    target = export_run(arguments.run, to=arguments.to, dtype=arguments.dtype)
    print(f"exported {arguments.run} to {target}")
    return 0
