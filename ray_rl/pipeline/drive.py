"""Checks the stages of a pipeline before the first one starts, and trains them in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ray_rl.app.before_start import check_before_start
from ray_rl.app.own_process import train_command
from ray_rl.config.run import RunConfig
from ray_rl.errors import OutsideError, Preempted, UserError
from ray_rl.exit_codes import BAD_INPUT, CHECKPOINTED, DONE, INTERRUPTED
from ray_rl.metrics.folder_lock import locked
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.pipeline.process import StageProcess, StopAsked, wait_for_release
from ray_rl.pipeline.stages import Stage, makers_of, with_stand_ins
from ray_rl.pipeline.state import State, mark_done

TEARDOWN_S = 60.0
"""How long the processes of a stage may take to end after its grace period."""

Say = Callable[[str], None]

DESCRIPTIONS: Mapping[State, str] = {
    "done": "done, is not trained again",
    "interrupted": "was interrupted, is resumed",
    "new": "new",
}
OUTCOMES: Mapping[State, str] = {"done": "done before", "interrupted": "resumed", "new": "trained"}


def check_stages(stages: Sequence[Stage], *, full_from: int = 0, progress: Say) -> Iterator[tuple[Stage, RunConfig]]:
    """Runs the checks of `ray-rl train` on each stage, and yields it with the configuration that was checked.

    That configuration has the models of earlier stages replaced by those from which they will be trained.

    Args:
        stages: the stages that are not done.
        full_from: index of the first stage that gets every check; the ones before get those that need no torch.
        progress: called with the progress of a long check.

    Raises:
        UserError: a stage could not start; nothing was started or written.
    """
    makers = makers_of(stages)
    for index, stage in enumerate(stages):
        config, stand_ins = with_stand_ins(stage.config, makers)
        is_full = index >= full_from
        try:
            check_before_start(
                config,
                resume="auto",
                is_full=is_full,
                stand_ins=stand_ins,
                progress=partial(_of_stage, stage, progress),
            )
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None
        yield stage, config


def run_pipeline(
    folder: Path, stages: Sequence[Stage], states: Mapping[str, State], *, again: str, say: Say, progress: Say
) -> None:
    """Checks every stage that is not done, and then trains them in order.

    Args:
        folder: the folder of the pipeline, which is created if it does not exist.
        stages: all stages.
        states: the state of each stage by its name.
        again: the command that continues the pipeline.
        say: called with a line for each stage.
        progress: called with the progress of a long check.

    Raises:
        Preempted: a signal asked the pipeline to stop, and its stage has saved.
        KeyboardInterrupt: the pipeline was interrupted, and its stage has not saved.
        UserError: the input of a stage is wrong; if it was started, its process has said why.
        OutsideError: a stage failed, and its process has said why; or another process uses the folder.
    """
    process = StageProcess()
    remaining = [stage for stage in stages if states[stage.name] != "done"]
    try:
        with process.listening():
            # The first one is checked in full by its own process.
            for _ in check_stages(remaining, full_from=1, progress=progress):
                pass
            _make(folder, for_group=any(stage.config.run.group_readable for stage in stages))
            with locked(folder):
                for stage in remaining:
                    say(f"stage {stage.name} ({stages.index(stage) + 1} of {len(stages)})")
                    _train(stage, process, again=again, say=say)
    except StopAsked as asked:
        if process.asked == signal.SIGINT:
            raise
        raise Preempted(f"stopped by {asked}; `{again}` continues") from None


def _of_stage(stage: Stage, progress: Say, line: str) -> None:
    progress(f"stage {stage.name}: {line}")


def _train(stage: Stage, process: StageProcess, *, again: str, say: Say) -> None:
    wait_for_release(stage.folder.root, limit_s=stage.config.run.grace_s + TEARDOWN_S, say=say)
    with train_command(stage.config, resume="auto") as command:
        code = process.run(command)
    _require_done(stage.name, code, again=again)
    mark_done(stage)
    if process.asked is not None:
        raise Preempted(f"stopped by {process.asked.name} after stage {stage.name}; `{again}` continues")


def _make(folder: Path, *, for_group: bool) -> None:
    RunFolder(folder).make(may_exist=True)
    if for_group:
        folder.chmod(0o750)


def _require_done(name: str, code: int, *, again: str) -> None:
    if code == DONE:
        return
    if code in (CHECKPOINTED, -signal.SIGTERM, -signal.SIGUSR1):
        raise Preempted(f"stopped in stage {name}; `{again}` continues there")
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code == BAD_INPUT:
        raise UserError(f"stage {name}: its input is wrong, see above; correct it, then continue with `{again}`")
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    raise OutsideError(f"stage {name}: its run failed ({how}), see above; `{again}` continues there")
