"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from ray_rl.program import program

if TYPE_CHECKING:
    from ray_rl.config.run import RunConfig

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


EXAMPLES = "run.steps=3, rewards.0.weight=2, 'data={kind: jsonl, path: train.jsonl}'"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG and the overrides."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser, examples: str = EXAMPLES) -> None:
    """Adds the overrides."""
    # Without a default, argparse says that they are required.
    text = f"sets one value, in YAML: {examples}"
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)


def remember(arguments: argparse.Namespace, config: RunConfig) -> None:
    """Stores in the arguments what the end of the command needs: the run's log, and secrets that it must hide."""
    from ray_rl.config.loading.redact import secrets_of
    from ray_rl.metrics.run_folder import RunFolder

    arguments.log = RunFolder.of(config.run).logs / "driver.log"
    arguments.secrets = secrets_of(config.model_dump())


def _auto(word: str) -> str:
    if word != "auto":
        folder = shlex.quote(word)
        raise argparse.ArgumentTypeError(f"{word} is not auto; to continue a run folder: {program()} resume {folder}")
    return word


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Adds --resume."""
    parser.add_argument(
        "--resume",
        type=_auto,
        metavar="auto",
        help="auto: if the run folder exists, continue from its newest checkpoint; for jobs that are restarted after "
        "exit code 75 or a crash",
    )


def say_line(line: str) -> None:
    """Prints a line to standard output, unbuffered."""
    print(line, flush=True)


def say_progress(line: str) -> None:
    """Prints the progress of a long check to standard error, unbuffered."""
    print(f"ray-rl: {line}", file=sys.stderr, flush=True)
