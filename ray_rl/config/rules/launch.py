"""Rules for launching a run. Each yields one message per violation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from ray_rl.config import RunConfig
from ray_rl.config.loading.explain import as_one_message
from ray_rl.config.loading.redact import is_secret, without_arguments, without_credentials
from ray_rl.errors import ConfigError

Backend = Literal["local", "ray-job", "slurm", "kuberay"]
"""The launchers."""

_PLACES_OF_SECRETS = {
    "local": "into the environment of this shell; the run inherits it",
    "ray-job": "into the environment of `ray start` on the nodes; jobs inherit it",
    "slurm": "into the environment of the shell that submits the job; the job inherits it",
    "kuberay": "into a Kubernetes secret, and name that in launch.kuberay.environment_from",
}

_OF_BASH = {
    "_",
    "DIRSTACK",
    "EUID",
    "FUNCNAME",
    "GROUPS",
    "IFS",
    "LINENO",
    "OLDPWD",
    "OPTIND",
    "PIPESTATUS",
    "POSIXLY_CORRECT",
    "PPID",
    "PS4",
    "PWD",
    "RANDOM",
    "SECONDS",
    "SHELLOPTS",
    "SHLVL",
    "SRANDOM",
    "UID",
}
"""Variables that bash does not accept from outside, or that change how it reads scripts. Every launcher uses bash."""


def check_launch(
    config: RunConfig, backend: Backend, overrides: Sequence[str] = (), *, folder_key: str = "run.dir"
) -> None:
    """Checks that a run can be launched.

    Args:
        config: the configuration of the run.
        backend: the launcher.
        overrides: the user's overrides, which the launched command repeats.
        folder_key: the key of the folder of run folders: `dir` in the file of a pipeline.

    Raises:
        ConfigError: the message names every violation with its remedy.
    """
    problems = [
        *_names(config),
        *_values(config, backend),
        *_secrets(config, backend, overrides),
        *_run_folder(config, backend, folder_key),
    ]
    if problems:
        raise ConfigError(as_one_message(problems))


def _names(config: RunConfig) -> Iterator[str]:
    for name in config.launch.environment:
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
            yield f"launch.environment.{name}: not the name of a variable; write letters, digits and underscores"
        elif name in _OF_BASH or name.startswith("BASH"):
            yield f"launch.environment.{name}: bash sets this variable, and every launcher uses bash; leave it out"


def _values(config: RunConfig, backend: Backend) -> Iterator[str]:
    """Yields an error for each value that would not arrive unchanged in the run."""
    for name, value in config.launch.environment.items():
        if re.search("[\0\ud800-\udfff]", value):
            yield f"launch.environment.{name}: has a null character or half of a surrogate pair; remove it"
        elif backend == "ray-job" and (found := re.search(r"\$(\w+|\{[^}]*\})", value)):
            yield (
                f"launch.environment.{name}: Ray would replace {found[0]} by a variable of its node, and cannot be "
                "told not to; write the value out, or set the variable where the nodes run `ray start`"
            )


def _secrets(config: RunConfig, backend: Backend, overrides: Sequence[str]) -> Iterator[str]:
    """Checks that rendered jobs contain no secrets: many people can read queues, dashboards and histories."""
    where = _PLACES_OF_SECRETS[backend]
    for name, value in config.launch.environment.items():
        if is_secret(name) or without_credentials(value) != value:
            # "NAME: looks" would read as a secret with its value, of which the console shows three stars.
            yield f"launch.environment: {name} looks like a secret, and others can read the job; put it {where}"
    for given, hidden in zip(overrides, without_arguments(overrides), strict=True):
        if given != hidden:
            yield f"override '{hidden}': looks like a secret, and others can read the job; put it {where}"
    address = config.launch.ray_job.address
    if address is not None and without_credentials(address) != address:
        yield "launch.ray_job.address: contains a password; remove it, and set launch.ray_job.token_path if needed"


def _run_folder(config: RunConfig, backend: Backend, key: str) -> Iterator[str]:
    """Checks that the next attempt finds the run folder. On Kubernetes only the claim persists: see `kuberay`."""
    folder = config.run.dir
    if backend == "ray-job" and not Path(folder).expanduser().is_absolute():
        yield (
            f"{key}={folder}: a Ray job runs in a copy of the current folder, which Ray deletes later, together "
            f"with checkpoints in a relative {key}; set {key} to an absolute path on storage that every node has, for "
            f"example {key}=/shared/{folder}"
        )
