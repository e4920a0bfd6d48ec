"""The command `ray-rl`. Every command is one function that takes its parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from ray_rl import __version__
from ray_rl.cli import doctor, export, jobs, launch, plan, resume, train, validate
from ray_rl.config.redact import hide, secrets_of
from ray_rl.errors import Preempted, RayRLError, UserError
from ray_rl.launching.kuberay_retries import forbid_retries

DONE = 0
FAILED = 1
BAD_INPUT = 2
CHECKPOINTED = 75
"""Saved; run me again (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

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
    """Runs one command; the exit code of the process is what this returns.

    Args:
        argv: words after the program's name; None takes those of the process.
    """
    try:
        arguments = _parsed(argv)
    except SystemExit as ended:
        if ended.code == BAD_INPUT:
            _forbid_retries()
        raise
    try:
        return int(arguments.command(arguments))
    except Preempted as stopped:
        print(f"ray-rl: {stopped}", file=sys.stderr)
        return CHECKPOINTED
    except RayRLError as error:
        code = BAD_INPUT if isinstance(error, UserError) else FAILED
        if code == FAILED and os.environ.get("RAY_RL_TRACEBACK") == "1":
            print(_without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        else:
            print(_without_secrets(f"ray-rl: error: {error}"), file=sys.stderr)
        if code == BAD_INPUT:
            _forbid_retries()
        return code
    except KeyboardInterrupt:
        print("ray-rl: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may stand behind options, too, where argparse does not look for them."""
    parser = _parser()
    arguments, left = parser.parse_known_args(argv)
    if left and ("overrides" not in arguments or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides += left
    return arguments


def _forbid_retries() -> None:
    """Where we are the driver of a RayJob, its controller would start all pods again for the same wrong input."""
    message = forbid_retries(os.environ)
    if message is not None:
        print(f"ray-rl: {message}", file=sys.stderr)


def _without_secrets(text: str) -> str:
    """A message without the values of variables like HF_TOKEN: what a library raised may quote them."""
    return hide(text, secrets_of(dict(os.environ)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ray-rl",
        description="Post-training of large language models with reinforcement learning on Ray, DeepSpeed and vLLM.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ray-rl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (train, resume, validate, plan, export, doctor, launch, jobs):
        module.add_to(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
