"""`ray-rl train` runs every check and then the training."""

from __future__ import annotations

import argparse
import signal
from types import FrameType
from typing import TYPE_CHECKING

from ray_rl.app.before_start import check_before_start
from ray_rl.cli.arguments import add_config, add_resume, remember, say_line, say_progress
from ray_rl.cli.plan import print_plan_of
from ray_rl.errors import Preempted

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands
    from ray_rl.config.run import RunConfig
    from ray_rl.loops.resuming import Resume


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "train",
        help="train; the run folder is <run.dir>/<run.name>",
        description="Runs every check and trains. If the input is wrong, the exit code is 2, and nothing was started "
        "or written. Closing the terminal does not end a run; `ray-rl stop RUN` does.",
        epilog="example: ray-rl train configs/grpo_addition_smollm2-135m_cpu.yaml run.name=first run.steps=3",
    )
    add_config(parser)
    add_resume(parser)
    parser.add_argument("--dry-run", action="store_true", help="run every check and print the plan; start nothing")
    parser.set_defaults(command=train, only_shows=True)


def train(arguments: argparse.Namespace) -> int:
    """Loads the configuration and trains; see `start`."""
    from ray_rl.config.loading.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    remember(arguments, config)
    if arguments.dry_run:
        check_before_start(config, resume=arguments.resume, progress=say_progress)
        print_plan_of(config)
        print("dry run: every check passed; nothing was started or written")
        return 0
    start(config, resume=arguments.resume)
    return 0


def start(config: RunConfig, *, resume: Resume | None, from_step: int | None = None) -> None:
    """Checks configuration, run folder, installation and data, then trains.

    Args:
        config: the configuration of the run.
        resume: None: the run folder must not exist. auto: it may. required: it must, with a checkpoint.
        from_step: The checkpoint from which to continue, with `required`; None for the newest.

    Raises:
        UserError: the input is wrong; nothing was started or written.
        Preempted: the run was told to stop.
        RayRLError: the run failed.
    """
    # Closing the terminal loses only the output; Ray and all workers inherit this. A run is ended by Ctrl-C, SIGTERM or
    # `ray-rl stop`.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _stop_at_once)
        checked = check_before_start(config, resume=resume, note=say_line, progress=say_progress)
        say_line("importing torch and transformers")

        from ray_rl.app.run import run_training

        run_training(config, resume=resume, from_step=from_step, checked=checked)
    except _StopAsked as asked:
        raise Preempted(f"stopped by {asked} before the run began; nothing was lost: start it again") from None


class _StopAsked(KeyboardInterrupt):
    """A scheduler asks the process to end, like Ctrl-C. As a KeyboardInterrupt it is not handled as an error."""


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process immediately. The run later installs its own handler, which saves."""
    raise _StopAsked(signal.Signals(number).name)
