"""Submits, shows and stops jobs with Slurm's own commands."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ray_rl.errors import OutsideError, UserError
from ray_rl.launching.job import Job
from ray_rl.launching.slurm.script import LOGS
from ray_rl.program import program

COMMAND_S = 60.0
"""Limit for one of Slurm's commands."""
POLL_S = 1.0
"""Seconds between reads of growing logs."""
ASK_EVERY_S = 10.0
"""Seconds between queries to Slurm, which serves a whole cluster, while logs are followed."""

ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
"""Final states of a job."""
UNKNOWN_JOB = "Invalid job id specified"
NO_ANSWER = ("Unable to contact", "Socket timed out", "Connection refused", "Connection timed out", "Zero Bytes were")
"""Messages of Slurm's commands when its controller does not answer."""


def submit(job: Job, text: str) -> str:
    """Submits a job and returns its id; the script is kept in the folder of its logs.

    Raises:
        UserError: Slurm refuses the script, or is not installed here.
        OutsideError: Slurm's controller does not answer.
    """
    folder = Path(".")
    if job.launch.workdir is not None and job.launch.slurm.container == "none":
        folder = Path(job.launch.workdir)
    logs = folder / LOGS
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{logs}: {error.strerror}; Slurm's output goes there: see launch.workdir") from error
    answer = _call("sbatch", "--parsable", input_text=text, folder=folder)
    number = answer.strip().partition(";")[0]
    (logs / f"{job.name}-{number}.sbatch").write_text(text, encoding="utf-8")
    return number


def status(job_id: str) -> str:
    """Returns state, reason, nodes, restarts, exit code and folder of the logs, as far as Slurm knows them.

    Raises:
        UserError: Slurm does not know the job.
        OutsideError: Slurm's controller does not answer.
    """
    fields = _fields(job_id)
    lines = [f"{job_id} {fields['JobName']}: {fields['JobState']}"]
    if fields.get("Reason", "None") != "None":
        lines[0] += f" ({fields['Reason']})"
    named = {
        "nodes": "NodeList",
        "restarts": "Restarts",
        "exit code": "ExitCode",
        "started": "StartTime",
        "time": "RunTime",
        "limit": "TimeLimit",
        "logs": "StdOut",
    }
    unknown = ("", "(null)", "Unknown")
    lines += [f"  {name}: {fields[key]}" for name, key in named.items() if fields.get(key, "") not in unknown]
    return "\n".join(lines)


def logs(job_id: str, *, follow: bool) -> Iterator[str]:
    """Yields the lines of the job's log, and of the driver's in every attempt.

    Args:
        job_id: the id of the job.
        follow: continue until the job has ended; otherwise stop at the end of the logs.

    Raises:
        UserError: there is no such job.
        OutsideError: Slurm's controller does not answer.
    """
    job_log = _job_log(job_id)
    read: dict[Path, int] = {}
    asked_s = -ASK_EVERY_S
    has_ended = not follow
    while True:
        # Query the state before the last read, so that no line is missed.
        if not has_ended and time.monotonic() - asked_s >= ASK_EVERY_S:
            asked_s = time.monotonic()
            has_ended = _has_ended(job_id)
        for file in (job_log, *sorted(job_log.with_suffix("").glob("attempt-*/driver.log"))):
            yield from _new_lines(file, read, is_last=has_ended)
        if has_ended:
            return
        time.sleep(POLL_S)


def stop(job_id: str) -> str:
    """Ends a job permanently and returns a message; a running job saves first.

    At SIGTERM the script's shell tells the driver to save, and does not requeue the job.

    Raises:
        UserError: there is no such job, or it has ended.
        OutsideError: Slurm's controller does not answer.
    """
    state = _fields(job_id)["JobState"]
    if state in ENDED:
        raise UserError(f"job {job_id} has ended already: {state}")
    if state == "RUNNING":
        _call("scancel", "--batch", "--signal=TERM", job_id)
        return (
            f"job {job_id} was told to save and end, within run.grace_s; `{program()} status slurm {job_id}` shows it"
        )
    _call("scancel", job_id)
    return f"job {job_id} was {state}: it is cancelled"


def _has_ended(job_id: str) -> bool:
    try:
        return _fields(job_id)["JobState"] in ENDED
    except UserError:
        return True  # it ended so long ago that Slurm has forgotten it


def _fields(job_id: str) -> Mapping[str, str]:
    """Returns the fields of `scontrol show job`, or of the accounting for jobs that the controller has forgotten."""
    if not re.fullmatch(r"[0-9]+", job_id):
        raise UserError(f"{job_id!r} is not the number of a Slurm job")
    shown = _answer("scontrol", "show", "job", "--oneliner", job_id)
    if shown.returncode == 0:
        first = shown.stdout.splitlines()[0]  # a heterogeneous job has a line for each group
        return dict(re.findall(r"(?:^| )(\w+)=(.*?)(?= \w+=|$)", first))
    if UNKNOWN_JOB not in shown.stderr:
        raise _failure("scontrol", shown)
    return _accounted(job_id)


def _accounted(job_id: str) -> Mapping[str, str]:
    names = ("JobName", "State", "Reason", "NodeList", "ExitCode", "Start", "Elapsed", "Timelimit")
    keys = ("JobName", "JobState", "Reason", "NodeList", "ExitCode", "StartTime", "RunTime", "TimeLimit")
    shown = _answer("sacct", "--allocations", "--noheader", "--parsable2", f"--format={','.join(names)}", "-j", job_id)
    if shown.returncode != 0 or not shown.stdout.strip():
        raise UserError(f"Slurm does not know job {job_id}: without accounting it soon forgets jobs that ended")
    fields = dict(zip(keys, shown.stdout.splitlines()[0].split("|"), strict=True))
    return fields | {"JobState": fields["JobState"].split()[0]}  # "CANCELLED by 0"


def _job_log(job_id: str) -> Path:
    """Returns the log of the script; for a forgotten job it is searched in the working folder."""
    here = sorted(Path(LOGS).glob(f"*-{job_id}.log"))
    try:
        return Path(_fields(job_id)["StdOut"])
    except (UserError, KeyError):
        if here:
            return here[0]
        raise UserError(
            f"Slurm does not know job {job_id}, and there is no {LOGS}/*-{job_id}.log here; call this in the folder "
            "where the job was submitted"
        ) from None


def _new_lines(file: Path, read: dict[Path, int], *, is_last: bool) -> Iterator[str]:
    """Yields the complete new lines of a file, and with `is_last` also an incomplete last line."""
    if not file.is_file():
        return
    with file.open("rb") as opened:
        opened.seek(read.get(file, 0))
        data = opened.read()
    if not is_last:
        data = data[: data.rfind(b"\n") + 1]
    read[file] = read.get(file, 0) + len(data)
    yield from data.decode(errors="replace").splitlines()


def _call(*command: str, input_text: str | None = None, folder: Path | None = None) -> str:
    """Runs a command and returns its output.

    Raises:
        UserError: the command refuses.
        OutsideError: Slurm's controller does not answer.
    """
    done = _answer(*command, input_text=input_text, folder=folder)
    if done.returncode != 0:
        raise _failure(command[0], done)
    return done.stdout


def _answer(
    *command: str, input_text: str | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=input_text,
            stdin=subprocess.DEVNULL if input_text is None else None,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            timeout=COMMAND_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]}: not found; call this on a login node of the Slurm cluster, or submit there the output of "
            "`ray-rl render slurm`"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise OutsideError(f"{command[0]}: no answer from Slurm within {COMMAND_S:g} s") from error


def _failure(command: str, done: subprocess.CompletedProcess[str]) -> UserError | OutsideError:
    said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    if any(text in said for text in NO_ANSWER):
        return OutsideError(f"{command}: Slurm's controller does not answer: {said}")
    return UserError(f"{command} refuses: {said}")
