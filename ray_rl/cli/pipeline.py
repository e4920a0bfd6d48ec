"""`ray-rl pipeline` trains several runs in order, of which later ones load the models of earlier ones."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.cli.arguments import say_line, say_progress
from ray_rl.cli.plan import print_plan_of
from ray_rl.program import program

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "pipeline",
        help="train several runs in order, each with the models of earlier ones",
        description="Trains the stages of a pipeline in order. The configuration of a stage may have the models of "
        "earlier stages, `model.path: {stage: sft}`. Every stage is checked before the first one starts. Start the "
        "same command again after an interruption: stages that are done are not trained again, and an interrupted one "
        "is resumed. Signals and exit codes are those of `ray-rl train`.",
        epilog="example: ray-rl pipeline configs/rlhf_smollm2-135m_cpu/pipeline.yaml name=first ppo.run.steps=20",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="YAML file of the pipeline")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="name=NAME, dir=DIR, or STAGE.key=value for a value in the configuration of a stage",
    )
    parser.add_argument("--dry-run", action="store_true", help="check all stages and print their plans; start nothing")
    parser.set_defaults(command=pipeline, only_shows=True)


def pipeline(arguments: argparse.Namespace) -> int:
    """Trains the stages that are not done, and prints the summary of all.

    Raises:
        UserError: the input of a stage is wrong.
        Preempted: a signal asked the pipeline to stop.
        RayRLError: a stage failed.
    """
    from ray_rl.config.loading.redact import secrets_of
    from ray_rl.pipeline.drive import DESCRIPTIONS, OUTCOMES, check_stages, run_pipeline
    from ray_rl.pipeline.file import load_pipeline
    from ray_rl.pipeline.stages import load_stages
    from ray_rl.pipeline.state import states_of
    from ray_rl.pipeline.summary import summary

    file = load_pipeline(arguments.file, arguments.overrides)
    stages = load_stages(file)
    arguments.log = file.folder / "pipeline.log"
    arguments.secrets = {secret for stage in stages for secret in secrets_of(stage.config.model_dump())}
    states = states_of(stages)
    say_line(f"{file.name}: {len(stages)} stages in {file.folder}")
    for stage in stages:
        say_line(f"  {stage.name}: {DESCRIPTIONS[states[stage.name]]}")
    if arguments.dry_run:
        remaining = [stage for stage in stages if states[stage.name] != "done"]
        for stage, config in check_stages(remaining, progress=say_progress):
            print(f"stage {stage.name}:")
            print_plan_of(config)
        print("dry run: every check passed; nothing was started or written")
        return 0
    again = f"{program()} {shlex.join(['pipeline', str(arguments.file), *arguments.overrides])}"
    run_pipeline(file.folder, stages, states, again=again, say=say_line, progress=say_progress)
    outcomes = {name: OUTCOMES[state] for name, state in states.items()}
    print("\n".join(summary(stages, outcomes, encoding=sys.stdout.encoding or "ascii")))
    return 0
