"""`ray-rl render` and `ray-rl submit` launch a configuration on this machine, a Ray cluster, Slurm or Kubernetes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from ray_rl.cli.arguments import add_config
from ray_rl.errors import ConfigError, Preempted, UserError
from ray_rl.program import program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ray_rl.cli.arguments import Commands
    from ray_rl.cluster.ray_jobs import Jobs
    from ray_rl.config.rules.launch import Backend
    from ray_rl.config.run import RunConfig
    from ray_rl.launching.job import Job

BACKENDS = {
    "local": "this machine, with a Ray cluster of the run's own",
    "ray-job": "a job of an existing Ray cluster",
    "slurm": "an sbatch script that starts Ray on its nodes",
    "kuberay": "a RayJob for KubeRay",
}


def add_to(commands: Commands) -> None:
    """Adds both commands."""
    parser = commands.add_parser(
        "render",
        help="print what would run: a command, an sbatch script, a RayJob manifest",
        description="Prints exactly what would run, and contacts no cluster. Its settings come from the launch section "
        "of the configuration, or from a launch file. CONFIG may be the file of a pipeline.",
        epilog="example: ray-rl render slurm configs/grpo_math_qwen2.5-7b_16xh100.yaml launch.queue=h100",
    )
    _add_backends(parser, BACKENDS, "Prints what would run for")
    parser.set_defaults(command=render)

    parser = commands.add_parser(
        "submit",
        help="check, plan and submit a run to a Ray cluster, Slurm or Kubernetes",
        description="Checks the configuration against the hardware that it requests, plans it, submits it, and prints "
        "the commands to follow it. CONFIG may be the file of a pipeline. Exit code 2 if something is wrong; then "
        "nothing is submitted.",
        epilog="example: ray-rl submit ray-job configs/grpo_math_qwen2.5-7b_16xh100.yaml run.dir=/shared/runs --follow",
    )
    others = [name for name in BACKENDS if name != "local"]
    for name, own in _add_backends(parser, others, "Submits").items():
        own.add_argument("--dry-run", action="store_true", help="check, plan, and print what would be submitted")
        if name == "ray-job":
            own.add_argument(
                "--follow",
                action="store_true",
                help="print the output of the run, resubmit it after exit code 75 and, launch.retries times, after a "
                "failure; the exit code is that of the last attempt",
            )
    parser.set_defaults(command=submit)


def _add_backends(
    parser: argparse.ArgumentParser, names: Iterable[str], verb: str
) -> dict[str, argparse.ArgumentParser]:
    backends = parser.add_subparsers(title="back ends", metavar="BACKEND", dest="backend", required=True)
    parsers = {}
    for name in names:
        what = BACKENDS[name]
        own = parsers[name] = backends.add_parser(name, help=what, description=f"{verb} {what}.")
        add_config(own)
        text = "YAML file with the content of a launch section; overrides the one in CONFIG"
        own.add_argument("--launch", metavar="FILE", help=text)
    return parsers


def render(arguments: argparse.Namespace) -> int:
    """Prints what would run.

    Raises:
        ConfigError: the configuration is wrong; the message has every problem.
    """
    print(rendered(checked_job(arguments), arguments.backend), end="")
    return 0


def submit(arguments: argparse.Namespace) -> int:
    """Submits a run that fits; returns 0, or with --follow the exit code of its driver.

    Raises:
        ConfigError: the message has every problem, and changes that make the run fit.
        ClusterError: the cluster does not answer.
    """
    job = checked_job(arguments)
    _require_room(job)
    text = rendered(job, arguments.backend)
    if arguments.dry_run:
        print(text, end="")
        print(f"ray-rl: dry run: {job.name} is valid and fits; nothing was submitted", file=sys.stderr)
        return 0
    match arguments.backend:
        case "ray-job":
            return _submit_ray_job(job, follow=arguments.follow)
        case "slurm":
            from ray_rl.launching.slurm import commands as slurm_commands

            _say_how_to_follow("slurm", slurm_commands.submit(job, text))
        case "kuberay":
            from ray_rl.launching.kuberay import commands as kuberay_commands

            options = ("--namespace", job.launch.kuberay.namespace)
            _say_how_to_follow("kuberay", kuberay_commands.submit(job, text), *options)
    return 0


def checked_job(arguments: argparse.Namespace) -> Job:
    """Returns the job of a command's arguments, checked against the requested hardware, not that of this machine.

    Raises:
        ConfigError: the configuration is wrong; the message has every problem.
    """
    from ray_rl.config.gpus import needed_gpus
    from ray_rl.config.loading.load import load_config
    from ray_rl.config.rules.check import check
    from ray_rl.config.rules.launch import check_launch
    from ray_rl.metrics.environment import git_state
    from ray_rl.pipeline.file import is_pipeline

    git = git_state(Path.cwd())
    commit = None if git is None else git["commit"] + ("-dirty" if git["dirty"] else "")
    if is_pipeline(Path(arguments.config)):
        from ray_rl.cli.launch_pipeline import pipeline_job

        _require_inside(arguments.config)
        return pipeline_job(arguments, commit=commit)
    config = load_config(arguments.config, arguments.overrides, launch=arguments.launch)
    check(config, visible_gpus=needed_gpus(config), is_elsewhere=arguments.backend != "local")
    check_launch(config, arguments.backend, arguments.overrides)
    return job_of(config, arguments.config, arguments.overrides, commit=commit)


def job_of(config: RunConfig, path: str, overrides: Sequence[str] = (), *, commit: str | None = None) -> Job:
    """Returns the job of a checked configuration.

    Args:
        config: the configuration of the run, including overrides and the launch file.
        path: the path of the configuration file, relative to the project.
        overrides: `key=value`; those of `launch` and `cluster.address` are left out.
        commit: the commit of the checkout, if the folder is one.

    Raises:
        ConfigError: the path is absolute, so the cluster may not have it; or the roles do not fit the nodes.
    """
    from ray_rl.launching.job import Job
    from ray_rl.planner.plan import plan

    _require_inside(path)
    kept = tuple(text for text in overrides if not text.strip().startswith(("launch.", "launch=", "cluster.address=")))
    return Job(config=config, config_path=path, overrides=kept, plan=plan(config), commit=commit)


def _require_inside(path: str) -> None:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigError(
            f"{path}: must be inside the current folder, which is what the cluster gets; call ray-rl from the "
            "project's root with a relative path"
        )


def rendered(job: Job, backend: Backend) -> str:
    """Returns the text that a back end would run.

    Raises:
        ConfigError: the configuration lacks a value that the back end needs.
    """
    match backend:
        case "local":
            from ray_rl.launching import local

            return local.render(job)
        case "ray-job":
            from ray_rl.launching.ray_job import entrypoint as ray_job

            return ray_job.render(job)
        case "slurm":
            from ray_rl.launching.slurm import script as slurm

            return slurm.render(job)
        case "kuberay":
            from ray_rl.launching.kuberay import manifest as kuberay

            return kuberay.render(job)
        case _:
            assert_never(backend)


def _require_room(job: Job) -> None:
    """Refuses runs that `ray-rl plan` refuses. Accepts models of unknown shape without planning their memory."""
    from ray_rl.planner.assess import assess, unknown_models
    from ray_rl.planner.gpus import ClusterShape
    from ray_rl.planner.report import require_fit

    for config in job.runs:
        unknown = unknown_models(config)
        if unknown:
            names = ", ".join(unknown)
            print(f"ray-rl: note: the shape of {names} is not known: memory was not planned", file=sys.stderr)
        else:
            require_fit(config, assess(config, ClusterShape.of(config)))


def _submit_ray_job(job: Job, *, follow: bool) -> int:
    from ray_rl.cluster.environment import use_token

    section = job.launch.ray_job
    use_token(section.token_path)
    from ray_rl.cluster.ray_jobs import Jobs

    jobs = Jobs(section.address)
    options = [] if section.address is None else ["--address", section.address]
    options += [] if section.token_path is None else ["--token-path", section.token_path]
    if follow:
        return _follow_attempts(jobs, job, options)
    _say_how_to_follow("ray-job", _submit_attempt(jobs, job), *options)
    return 0


def _submit_attempt(jobs: Jobs, job: Job) -> str:
    """Submits the next attempt and returns its name.

    Raises:
        UserError: another attempt has not ended.
    """
    from ray_rl.launching.ray_job.entrypoint import submission_of

    last, running = jobs.attempts(job.name)
    if running is not None:
        raise UserError(
            f"run.name={job.name}: {running} has not ended; follow it with "
            f"`{program()} logs ray-job {running} --follow`, stop it with `{program()} stop ray-job {running}`, or set "
            "run.name to another name"
        )
    return jobs.submit(submission_of(job, attempt=last + 1))


def _follow_attempts(jobs: Jobs, job: Job, options: list[str]) -> int:
    """Follows attempts, one after the other, and returns the exit code of the last."""
    from ray_rl.exit_codes import FAILED
    from ray_rl.launching.attempts import is_countable, is_tried_again

    failures = 0
    while True:
        name = _submit_attempt(jobs, job)
        _say_how_to_follow("ray-job", name, *options)
        try:
            outcome = jobs.follow(name, show)
        except KeyboardInterrupt:
            print(f"ray-rl: {name} keeps running, but is not resubmitted; use the commands above", file=sys.stderr)
            raise
        print(f"ray-rl: {outcome}", file=sys.stderr)
        if outcome.state == "STOPPED":
            raise Preempted(f"{name} was stopped; submit the run again to continue from its newest checkpoint")
        code = FAILED if outcome.code is None else outcome.code
        failures += is_countable(code)
        if not is_tried_again(code, failures=failures, retries=job.launch.retries):
            return code
        print(
            f"ray-rl: {name} saved, and is submitted again"
            if not is_countable(code)
            else f"ray-rl: {name} failed, and is submitted again: {failures} of launch.retries={job.launch.retries}",
            file=sys.stderr,
        )


def show(text: str) -> None:
    """Prints a part of a log, unbuffered."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _say_how_to_follow(backend: str, name: str, *options: str) -> None:
    words = shlex.join([backend, name, *options])
    print(f"ray-rl: submitted {name}", file=sys.stderr)
    for command in (f"logs {words} --follow", f"status {words}", f"stop {words}"):
        print(f"  {program()} {command}", file=sys.stderr)
