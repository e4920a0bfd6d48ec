"""A job of an existing Ray cluster: the submission, and the command that would submit the same."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_rl.launching.attempts import attempt_id
from ray_rl.launching.job import Job

WORKING_DIR = "."
"""The folder that Ray packs, without files in .gitignore and .rayignore, and unpacks on every node."""

DRIVER_CPUS = 1
"""CPUs reserved for the driver, so that workers do not use them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The arguments of Ray's job API."""

    id: str
    entrypoint: tuple[str, ...]
    """Words of the command; Ray's API expects them joined for a shell."""
    metadata: dict[str, str]
    env_vars: dict[str, str]
    """Environment variables of the driver and of all workers."""

    @property
    def shell_line(self) -> str:
        """The command for Ray."""
        return shlex.join(self.entrypoint)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment, without pip and image: nodes have the packages, and installing takes minutes."""
        return {"working_dir": WORKING_DIR, "env_vars": self.env_vars}


def submission_of(job: Job, *, attempt: int = 1) -> Submission:
    """Returns an attempt of a run as a Ray job. Ray refuses known names, so no attempt is submitted twice."""
    metadata = {"run": job.name, "length": job.length, "gpus": str(job.plan.gpus), "config_hash": job.config_hash}
    if job.commit is not None:
        metadata["git_sha"] = job.commit
    return Submission(
        id=attempt_id(job.name, attempt),
        entrypoint=job.entrypoint if job.preflight is None else ("bash", "-c", job.shell_line),
        metadata=metadata,
        env_vars=job.environment,
    )


def render(job: Job, *, attempt: int = 1) -> str:
    """Returns the bash command that submits an attempt. It contains the token's file, not the token."""
    submission = submission_of(job, attempt=attempt)
    section = job.launch.ray_job
    lines = [f"# {submission.id}: {job.length}, as a job of an existing Ray cluster."]
    if section.token_path is not None:
        path = str(Path(section.token_path).expanduser())
        lines += ["unset RAY_AUTH_TOKEN", f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={shlex.quote(path)}"]
    if section.address is not None:
        lines += ["# Variables go before --address.", "unset RAY_ADDRESS RAY_API_SERVER_ADDRESS"]
    return "\n".join([*lines, _command(submission, section.address)]) + "\n"


def _command(submission: Submission, address: str | None) -> str:
    options = [] if address is None else [("--address", address)]
    options += [
        ("--submission-id", submission.id),
        ("--working-dir", WORKING_DIR),
        ("--entrypoint-num-cpus", str(DRIVER_CPUS)),
        ("--metadata-json", json.dumps(submission.metadata)),
        ("--runtime-env-json", json.dumps({"env_vars": submission.env_vars})),
    ]
    parts = [f"{option} {shlex.quote(value)}" for option, value in options]
    return " \\\n  ".join(["ray job submit", *parts, f"-- {submission.shell_line}"])
