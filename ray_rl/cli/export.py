"""`ray-rl export` writes the trained policy as a folder in Hugging Face format."""

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
        help="make a model folder from a run or from one of its checkpoints, in Hugging Face format",
        description="Makes a model folder in Hugging Face format: from the export of a finished run, or from the "
        "newest checkpoint of a run that is in progress or was stopped. Needs no GPU and no Ray.",
        epilog="example: ray-rl export runs/grpo-addition --step 40 --to my-model --dtype bfloat16",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument(
        "--step",
        metavar="N",
        type=int,
        help="use the checkpoint of step N; default: the newest, or the best one of a run with checkpoint.keep_best",
    )
    parser.add_argument(
        "--to",
        metavar="DIR",
        type=Path,
        help="new folder for the model; an existing one is refused. Default for a checkpoint: RUN/export_step_N",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="type of the weights; default: unchanged")
    parser.set_defaults(command=export)


def export(arguments: argparse.Namespace) -> int:
    """Makes the model folder and prints its path.

    Raises:
        UserError: there is no such step, no complete export, or the target is in use.
        CheckpointError: the checkpoint does not verify, or the file system refuses.
    """
    from ray_rl.checkpoint.export_folder import export_run
    from ray_rl.checkpoint.export_marks import exported_step

    folder = export_run(arguments.run, to=arguments.to, dtype=arguments.dtype, step=arguments.step)
    step = exported_step(folder)
    of = str(arguments.run) if step is None else f"step {step} of {arguments.run}"
    if folder == arguments.run / "export":
        print(f"{folder} already holds {of}; give --to DIR for a copy")
    else:
        print(f"exported {of} to {folder}")
    return 0
