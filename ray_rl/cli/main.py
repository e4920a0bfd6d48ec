"""The command `ray-rl`. Every command is one function that takes its parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ray_rl import __version__
from ray_rl.cli import doctor, export, jobs, launch, migrate, pipeline, plan, resume, runs, train, validate
from ray_rl.cli.ending import ended
from ray_rl.cli.unknown_words import check_command, commands_of, unrecognized
from ray_rl.exit_codes import BAD_INPUT, DONE, FAILED
from ray_rl.launching.kuberay.retries import forbid_retries
from ray_rl.metrics.output import unbreakable_output

_EXAMPLES = """\
examples:
  ray-rl doctor
  ray-rl validate configs/grpo_addition_smollm2-135m_cpu.yaml
  ray-rl train configs/grpo_addition_smollm2-135m_cpu.yaml run.steps=3 train.workers=2
  ray-rl resume runs/grpo-addition
  ray-rl submit ray-job configs/grpo_math_qwen2.5-7b_16xh100.yaml --launch launch/ray_job.yaml --follow
  ray-rl export runs/grpo-addition --to my-model --dtype bfloat16

exit codes: 0 done, 1 failed, 2 your configuration or input is wrong, 75 told to stop and saved: resume it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code of the process.

    Args:
        argv: words after the program's name; None uses those of the process.
    """
    with unbreakable_output() as output:
        try:
            arguments = _parsed(sys.argv[1:] if argv is None else argv)
        except SystemExit as stopped:
            if stopped.code == BAD_INPUT:
                _forbid_retries()
            raise
        code = ended(arguments, arguments.command)
        if code == BAD_INPUT:
            _forbid_retries()
        if code == DONE and not vars(arguments).get("only_shows", False):
            output.flush()
            if output.has_lost_to_full_disk:
                print("ray-rl: error: standard output is on a disk that is full; make room there", file=sys.stderr)
                return FAILED
        return code


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments, with overrides also after options, where argparse does not accept them."""
    parser = _parser()
    words = jobs.with_backend(words)
    if not words and commands_of(parser):
        parser.print_help(sys.stderr)
        raise SystemExit(BAD_INPUT)
    check_command(parser, words)
    arguments, left = parser.parse_known_args(words)
    if left and ("overrides" not in arguments or any(word.startswith("-") for word in left)):
        parser.error(unrecognized(parser, words, left, takes_overrides="overrides" in arguments))
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def _forbid_retries() -> None:
    """Prevents the controller of a RayJob from restarting all pods for the same wrong input."""
    message = forbid_retries(os.environ)
    if message is not None:
        print(f"ray-rl: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser that requires options in full, also for subcommands: --resum is an error and not --resume."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


@cache
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ray-rl",
        description="Post-training of large language models with reinforcement learning on Ray, DeepSpeed and vLLM.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ray-rl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (train, resume, pipeline, runs, validate, migrate, plan, export, doctor, launch, jobs):
        module.add_to(commands)
    return parser


if __name__ == "__main__":
    # The Python API starts this module; the commands that we print begin with the script.
    sys.argv[0] = str(Path(sys.executable).with_name("ray-rl"))
    raise SystemExit(main())
