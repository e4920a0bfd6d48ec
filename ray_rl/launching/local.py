"""Renders a run on this machine as a script for bash."""

from __future__ import annotations

import shlex

from ray_rl.launching.job import Job
from ray_rl.launching.shell import exports


def render(job: Job) -> str:
    """Returns a script that runs or resumes the run with a Ray cluster of its own.

    Its exit code is that of the driver.
    """
    where = f"{job.plan.gpus} GPUs" if job.plan.gpus else "CPU"
    lines = [
        "#!/usr/bin/env bash",
        f"# {job.name}: {job.length} on this machine, on {where}. Exit code 75: saved, run me again.",
        "set -euo pipefail",
        *exports(job.environment),
    ]
    if job.preflight is not None:
        lines.append(shlex.join(_here(job, job.preflight)))
    lines.append(f"exec {shlex.join(_here(job, job.entrypoint))}")
    return "\n".join(lines) + "\n"


def _here(job: Job, command: tuple[str, ...]) -> list[str]:
    """Returns the command without the address of a cluster, so that the driver starts a local one."""
    place = command.index(job.joins[0])
    return [*command[:place], *job.stays, *command[place + len(job.joins) :]]
