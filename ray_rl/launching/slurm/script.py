"""Renders an sbatch script: the variable part on top is made here; the rest, `body.sh`, is the same for every run."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from pathlib import PurePosixPath

from ray_rl.config.launch import SlurmLaunch
from ray_rl.errors import ConfigError
from ray_rl.launching.job import Job
from ray_rl.launching.shell import exports

LOGS = "slurm-logs"
"""Folder of Slurm's output and of the attempts' logs, in the folder where the job starts."""
WORKSPACE = "/workspace"
"""The project's folder in images."""

SET_ON_TOP = ("NODES", "CPU_NODES", "GPUS", "READY_S", "GRACE_S", "RETRIES", "STEP", "CONTAINER_MOUNTS")
"""Variables of the body that `_values` sets."""
NOT_FOR_RAY = ("SLURM", "SRUN", "PMI", "RAY_RL_")
"""Prefixes of variables that the body hides from Ray or sets itself."""


def render(job: Job) -> str:
    """Returns the script that runs a job under Slurm, for `sbatch`.

    Raises:
        ConfigError: the configuration cannot be run under Slurm.
    """
    _check(job)
    parts = ["#!/bin/bash", *_directives(job), *_note(job), "", "set -euo pipefail", *_values(job), ""]
    parts += exports(job.environment)
    parts += _setup(job)
    preflight = ":" if job.preflight is None else shlex.join(job.preflight)
    parts += ["", f"preflight() {{ {preflight}; }}", f"entrypoint() {{ exec {shlex.join(job.entrypoint)}; }}", ""]
    return "\n".join(parts) + "\n" + _body()


def _body() -> str:
    return files("ray_rl.launching.slurm").joinpath("body.sh").read_text(encoding="utf-8")


def _check(job: Job) -> None:
    launch, grace_s = job.launch, job.config.run.grace_s
    slurm = launch.slurm
    taken = sorted(name for name in launch.environment if name in _own_variables() or name.startswith(NOT_FOR_RAY))
    if taken:
        raise ConfigError(
            f"launch.environment.{taken[0]}: the script for Slurm sets or removes a variable of this name, so yours "
            "would have no effect; choose another name, or leave it out"
        )
    if slurm.container == "pyxis":
        _check_container(job)
    if slurm.warn_s <= grace_s:
        raise ConfigError(
            f"launch.slurm.warn_s={slurm.warn_s}: the run has run.grace_s={grace_s:g} seconds to save after the "
            "warning, and must then be queued again before the time limit; warn earlier or set run.grace_s lower"
        )
    if launch.time_limit_s <= slurm.warn_s:
        raise ConfigError(
            f"launch.time_limit={launch.time_limit} is not longer than launch.slurm.warn_s={slurm.warn_s}: the run "
            "would be told to save as soon as it starts"
        )


def _own_variables() -> set[str]:
    """Returns the variables to which the script gives values."""
    body = _body()
    names = re.findall(r"(?:^|[\s(;])([A-Za-z_]\w*)\+?=|\bfor (\w+) in\b|\bmapfile -t (\w+)", body)
    declared = " ".join(re.findall(r"\blocal (.*)", body))
    return {name for found in names for name in found if name} | {*declared.split(), *SET_ON_TOP, "RAY_AUTH_TOKEN"}


def _check_container(job: Job) -> None:
    if job.launch.image is None:
        raise ConfigError("launch.slurm.container=pyxis: needs an image; set launch.image, best to a squashfs file")
    runs = PurePosixPath(job.launch.workdir or WORKSPACE) / job.config.run.dir
    # "/lustre/me:/workspace/runs:rw", or one path that is the same inside and outside.
    inside = [PurePosixPath((mount.split(":") * 2)[1]) for mount in job.launch.mounts]
    if not any(runs.is_relative_to(folder) for folder in inside):
        raise ConfigError(
            f"run folders would be in {runs}, which is in no launch.mounts ({', '.join(job.launch.mounts) or 'none'}): "
            "they would be lost with the container, and no attempt could resume; mount a folder of all nodes, or set "
            "run.dir to one that is mounted"
        )


def _directives(job: Job) -> list[str]:
    """Returns the `#SBATCH` lines; those of a second group follow `#SBATCH hetjob`."""
    launch, slurm = job.launch, job.launch.slurm
    whole: list[tuple[str, str | None]] = [
        ("job-name", job.name),
        ("output", f"{LOGS}/%x-%j.log"),
        ("chdir", None if slurm.container == "pyxis" else launch.workdir),
        ("signal", f"B:USR1@{slurm.warn_s}"),
    ]
    lines = [*_options(whole), "#SBATCH --open-mode=append", "#SBATCH --requeue"]
    gpus = str(job.gpus_per_node) if job.gpus_per_node else None
    group = [*_group(job, partition=launch.queue, nodes=job.nodes, gpus=gpus), *_further(slurm.options)]
    if not slurm.cpu_nodes:
        return lines + group
    # The first node of the first group runs the script, Ray's head and the driver.
    first = _group(job, partition=slurm.cpu_partition or launch.queue, nodes=slurm.cpu_nodes, gpus=None)
    return [*lines, *first, "#SBATCH hetjob", *group]


def _group(job: Job, *, partition: str | None, nodes: int, gpus: str | None) -> list[str]:
    """Returns the options for a group of equal nodes."""
    launch, slurm = job.launch, job.launch.slurm
    cpus, memory = launch.cpus_per_node, launch.memory_gib_per_node
    lines = _options(
        [
            ("account", slurm.account),
            ("qos", slurm.qos),
            ("partition", partition),
            ("time", launch.time_limit),
            ("nodes", str(nodes)),
            ("ntasks-per-node", "1"),
            ("gpus-per-node", gpus),
            ("cpus-per-task", None if cpus is None else str(cpus)),
            ("mem", None if memory is None else f"{memory}G"),
        ]
    )
    # Request all CPUs of the nodes without giving their number.
    return [*lines, "#SBATCH --exclusive"] if cpus is None else lines


def _options(values: list[tuple[str, str | None]]) -> list[str]:
    return [f"#SBATCH --{name}={_one_line(name, value)}" for name, value in values if value is not None]


def _one_line(name: str, value: str) -> str:
    """Quotes a value for sbatch, which knows only double quotes."""
    if "\n" in value or '"' in value:
        raise ConfigError(f"{value!r} for sbatch's {name}: must be one line without double quotes")
    return f'"{value}"' if " " in value else value


def _further(options: list[str]) -> list[str]:
    for option in options:
        if not option.startswith("-") or "\n" in option:
            raise ConfigError(f"launch.slurm.options: {option!r} must be one option of sbatch, like --constraint=h100")
    return [f"#SBATCH {option}" for option in options]


def _note(job: Job) -> list[str]:
    return [
        f"# {job.name}: {job.length} of {job.config_path}",
        f"# Made by `ray-rl render slurm`. By hand, in the project's folder: mkdir -p {LOGS} && sbatch FILE",
        "# shellcheck disable=SC2329 # some functions are called by steps and traps",
    ]


def _values(job: Job) -> list[str]:
    """Returns the lines that set the variables of the body."""
    launch, slurm = job.launch, job.launch.slurm
    return [
        f"NODES={job.nodes} CPU_NODES={slurm.cpu_nodes} GPUS={job.gpus_per_node}",
        f"READY_S={slurm.ready_timeout_s} GRACE_S={round(job.config.run.grace_s)} RETRIES={launch.retries}",
        f"STEP=({shlex.join(_container(job))})",
        f"CONTAINER_MOUNTS={shlex.quote(_mounts(job))}",
        f"export RAY_RL_PORT={slurm.port} RAY_RL_CPUS={launch.cpus_per_node or ''}",
    ]


def _container(job: Job) -> list[str]:
    """Returns the options of every step for pyxis."""
    if job.launch.slurm.container == "none":
        return []
    return [
        f"--container-image={job.launch.image}",
        f"--container-workdir={job.launch.workdir or WORKSPACE}",
        "--no-container-mount-home",
    ]


def _mounts(job: Job) -> str:
    """Returns the mounts of the containers, separated by commas; empty without containers."""
    return "" if job.launch.slurm.container == "none" else ",".join(job.launch.mounts)


def _setup(job: Job) -> list[str]:
    slurm: SlurmLaunch = job.launch.slurm
    if slurm.setup:
        return ["", *slurm.setup]
    if slurm.container == "pyxis":
        return []
    return ["", "# The project's own environment, as `make setup` makes it.", "PATH=$PWD/.venv/bin:$PATH"]
