"""`ray-rl runs`, and `status`, `logs` and `stop` of a run folder, for runs that were started on this machine."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ray_rl.errors import ClusterError, UserError
from ray_rl.program import program

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands
    from ray_rl.cli.run_state import RunState

TEARDOWN_S = 60.0
"""How long the processes of a run may take to end after its grace period."""
POLL_S = 0.5


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "runs",
        help="list the run folders under a folder, with the state of each and its next command",
        description="Lists run folders with their state, steps, mean reward or loss of the last step, time since the "
        "last write, and the command to run next.",
        epilog="example: ray-rl runs runs",
    )
    parser.add_argument(
        "dir", metavar="DIR", nargs="?", type=Path, default=Path("runs"), help="folder to search; default: runs"
    )
    parser.set_defaults(command=runs)


def runs(arguments: argparse.Namespace) -> int:
    """Prints one line per run.

    Raises:
        UserError: there is no such folder.
    """
    from ray_rl.cli.run_state import run_folders, run_state

    folder = arguments.dir.expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that run.dir names")
    states = [run_state(found) for found in run_folders(folder)]
    if not states:
        print(f"{folder}: no run folders in it, down to three levels")
        return 0
    by_age = sorted(states, key=lambda state: state.age_s)
    rows = [("RUN", "STATE", "STEP", "REWARD", "AGE", "NEXT"), *map(_row, by_age)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(state: RunState) -> tuple[str, str, str, str, str, str]:
    from ray_rl.metrics.text import duration, printable

    folder = printable(str(state.folder), encoding="utf-8", limit=200)
    loss = "-" if state.loss is None else f"loss {state.loss:.3f}"
    reward = loss if state.reward is None else f"{state.reward:.3f}"
    return folder, state.state, _steps(state), reward, duration(state.age_s), state.next


def _steps(state: RunState) -> str:
    return f"{state.step}/{'?' if state.steps is None else state.steps}"


def status(folder: Path) -> str:
    """Returns the state of a run in a few lines.

    Raises:
        UserError: the folder is not a run folder.
    """
    from ray_rl.cli.run_state import run_state
    from ray_rl.metrics.text import duration

    state = run_state(folder)
    lines = [f"{folder}: {_headline(state)}", f"  last written {duration(state.age_s)} ago"]
    if state.reward is not None:
        lines.append(f"  reward {state.reward:.3f} (mean of the last step)")
    if state.loss is not None:
        lines.append(f"  loss {state.loss:.3f} (mean of the last step)")
    saved = "none yet" if state.checkpoint is None else f"step {state.checkpoint}"
    lines.append(f"  newest checkpoint: {saved}")
    if state.problem:
        lines.append(f"  {state.problem}")
    return "\n".join([*lines, f"  next: {state.next}"])


def _headline(state: RunState) -> str:
    owner = state.owner
    if owner is None:
        return f"{state.state}, after step {_steps(state).replace('/', ' of ')}"
    who = f" (pid {owner.pid} on {owner.host})" if owner.pid is not None else ""
    return f"running{who}, step {_steps(state).replace('/', ' of ')} is on record"


def logs(folder: Path, *, follow: bool) -> Iterator[str]:
    """Yields `logs/driver.log` in pieces, or a line that there is none; with `follow`, until the run has ended.

    Raises:
        UserError: the folder is not a run folder.
    """
    from ray_rl.cli.run_state import owner_of, run_state

    run_state(folder)
    log = folder / "logs" / "driver.log"
    file: TextIO | None = None
    with ExitStack() as stack:
        while True:
            is_last = not follow or owner_of(folder) is None
            if file is None and log.is_file():
                file = stack.enter_context(log.open(encoding="utf-8", errors="backslashreplace"))
            if file is not None:
                yield from iter(partial(file.read, 2**16), "")
            if is_last:
                break
            time.sleep(POLL_S)
    if file is None:
        others = (
            f"the output of its workers is in {log.parent}/"
            if any(log.parent.glob("*"))
            else "its workers wrote no output"
        )
        yield f"{folder}: no driver.log, because nothing unusual has happened; {others}\n"


def stop(folder: Path, *, dry_run: bool = False) -> int:
    """Asks the process that trains in a folder to save and end, waits for that within its grace, and says how it ended.

    Raises:
        UserError: the folder is not a run folder, or its process is not on this machine.
        ClusterError: the run did not end in time.
    """
    from ray_rl.cli.run_state import is_here, owner_of, run_state

    state = run_state(folder)
    owner = state.owner
    if owner is None:
        print(f"{folder}: not running; {_headline(state)}\n  next: {state.next}")
        return 0
    if owner.pid is None:
        raise UserError(
            f"{folder}: it is running, but its lock does not say where; send SIGTERM to its `ray-rl` process"
        )
    if not is_here(owner):
        raise UserError(
            f"{folder}: its process is {owner.pid} on {owner.host}, which is not this machine or container; run "
            f"`{program()} stop {shlex.quote(str(folder))}` there"
        )
    if dry_run:
        print(
            f"dry run: SIGTERM would go to process {owner.pid}: it finishes its step, saves and ends, within "
            f"{state.grace_s:g} s; nothing was done"
        )
        return 0
    try:
        os.kill(owner.pid, signal.SIGTERM)
    except PermissionError:
        raise UserError(
            f"{folder}: process {owner.pid} is another user's; ask its owner, or an administrator"
        ) from None
    except ProcessLookupError:
        print(f"{folder}: process {owner.pid} had just ended", file=sys.stderr)
    limit_s = state.grace_s + TEARDOWN_S
    print(f"{folder}: asked process {owner.pid} to save and end, at most {limit_s:g} s", file=sys.stderr)
    deadline = time.monotonic() + limit_s
    while (now := owner_of(folder)) is not None and now.pid == owner.pid:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{folder}: process {owner.pid} has not ended {limit_s:g} s after SIGTERM; `kill -9 {owner.pid}` ends "
                "it at once, and the run is resumed from its newest checkpoint"
            )
        time.sleep(POLL_S)
    after = run_state(folder)
    saved = (
        "it left no checkpoint" if after.checkpoint is None else f"its newest checkpoint is of step {after.checkpoint}"
    )
    print(f"{folder}: ended, {_headline(after)}; {saved}\n  next: {after.next}")
    return 0
