"""`ray-rl status`, `logs` and `stop`, for runs by their folder or by the name that `ray-rl submit` printed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.cli import runs
from ray_rl.cli.launch import show

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands
    from ray_rl.cluster.ray_jobs import Jobs

_BACKENDS = {
    "run": "a run folder; `run` may be left out",
    "ray-job": "a job of a Ray cluster",
    "slurm": "a job of Slurm",
    "kuberay": "a RayJob",
}


def add_to(commands: Commands) -> None:
    """Adds the commands."""
    parser = commands.add_parser(
        "status",
        help="print the state of a run: `ray-rl status RUN`, or of a submitted one",
        description="Prints the state of a run. For a run folder, it prints the step, the reward, the newest "
        "checkpoint and the next command; for a submitted run that has ended, its exit code. Exit code 2 if there is "
        "no such run.",
        epilog="example: ray-rl status runs/grpo-addition",
    )
    _add_backends(parser)
    parser.set_defaults(command=status)

    parser = commands.add_parser(
        "logs",
        help="print the output of a submitted run, or logs/driver.log of a run folder",
        description="Prints the output of a submitted run, or `logs/driver.log` of a run folder, which has what was "
        "unusual: failures, restarts and requests to stop.",
    )
    for own in _add_backends(parser):
        own.add_argument("--follow", action="store_true", help="print new lines until the run has ended")
    parser.set_defaults(command=logs)

    parser = commands.add_parser(
        "stop",
        help="ask a run to save and end: `ray-rl stop RUN`, or a submitted one",
        description="Asks a run to finish its step, save and end within its run.grace_s, waits until it has ended, "
        "and prints how. To continue the run, use `ray-rl resume`, or submit it again.",
        epilog="example: ray-rl stop runs/grpo-addition",
    )
    for own in _add_backends(parser):
        own.add_argument(
            "--dry-run", action="store_true", help="print the state of the run and what would happen; do nothing"
        )
    parser.set_defaults(command=stop)


def with_backend(words: Sequence[str]) -> list[str]:
    """Returns the words of a command line, with the back end `run` inserted before a folder."""
    if len(words) < 2 or words[0] not in ("status", "logs", "stop"):
        return list(words)
    place = next((place for place, word in enumerate(words[1:], start=1) if not word.startswith("-")), None)
    if place is None or (words[place] in _BACKENDS and not (place + 1 == len(words) and Path(words[place]).is_dir())):
        return list(words)
    return [words[0], "run", *words[1:]]


def _add_backends(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    backends = parser.add_subparsers(title="runs and back ends", metavar="RUN", dest="backend", required=True)
    parsers = []
    for name, what in _BACKENDS.items():
        own = backends.add_parser(name, help=what)
        metavar, what = ("RUN", "run folder") if name == "run" else ("ID", "name that `ray-rl submit` printed")
        own.add_argument("id", metavar=metavar, help=what)
        match name:
            case "ray-job":
                own.add_argument(
                    "--address", metavar="URL", help="URL of the dashboard; default: RAY_API_SERVER_ADDRESS"
                )
                own.add_argument(
                    "--token-path", metavar="FILE", help="file with the token; default: RAY_AUTH_TOKEN_PATH"
                )
            case "kuberay":
                own.add_argument(
                    "--namespace", metavar="NAME", default="default", help="namespace of the RayJob; default: default"
                )
        parsers.append(own)
    return parsers


def status(arguments: argparse.Namespace) -> int:
    """Prints the state of a run.

    Raises:
        UserError: there is no such job.
    """
    print(_status(arguments))
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Prints the log.

    Raises:
        UserError: there is no such job.
    """
    match arguments.backend:
        case "run":
            for piece in runs.logs(Path(arguments.id), follow=arguments.follow):
                show(piece)
        case "ray-job":
            jobs = _ray_jobs(arguments)
            if arguments.follow:
                print(f"ray-rl: {jobs.follow(arguments.id, show)}", file=sys.stderr)
            else:
                show(jobs.logs(arguments.id))
        case "slurm":
            from ray_rl.launching.slurm import commands as slurm_commands

            for line in slurm_commands.logs(arguments.id, follow=arguments.follow):
                print(line.removesuffix("\n"), flush=True)
        case "kuberay":
            from ray_rl.launching.kuberay import commands as kuberay_commands

            for line in kuberay_commands.logs(arguments.id, follow=arguments.follow, namespace=arguments.namespace):
                print(line.removesuffix("\n"), flush=True)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Stops a job, or in a dry run says what would happen.

    Raises:
        UserError: there is no such job.
        ClusterError: the job did not end in time.
    """
    if arguments.backend == "run":
        return runs.stop(Path(arguments.id), dry_run=arguments.dry_run)
    if arguments.dry_run:
        print(_status(arguments))
        print("dry run: it would be asked to finish its step, save and end, if it has not ended; nothing was done")
        return 0
    match arguments.backend:
        case "ray-job":
            _stop_ray_job(_ray_jobs(arguments), arguments.id)
        case "slurm":
            from ray_rl.launching.slurm import commands as slurm_commands

            print(slurm_commands.stop(arguments.id))
        case "kuberay":
            from ray_rl.launching.kuberay import commands as kuberay_commands

            print(kuberay_commands.stop(arguments.id, namespace=arguments.namespace))
    return 0


def _status(arguments: argparse.Namespace) -> str:
    match arguments.backend:
        case "run":
            return runs.status(Path(arguments.id))
        case "ray-job":
            return str(_ray_jobs(arguments).status(arguments.id))
        case "slurm":
            from ray_rl.launching.slurm import commands as slurm_commands

            return slurm_commands.status(arguments.id)
        case _:
            from ray_rl.launching.kuberay import commands as kuberay_commands

            return kuberay_commands.status(arguments.id, namespace=arguments.namespace)


def _ray_jobs(arguments: argparse.Namespace) -> Jobs:
    from ray_rl.cluster.environment import use_token

    use_token(arguments.token_path)
    from ray_rl.cluster.ray_jobs import Jobs

    return Jobs(arguments.address)


def _stop_ray_job(jobs: Jobs, job: str) -> None:
    """Stops a Ray job and prints the end of its output, which says what it saved."""
    wait_s, is_its_own = jobs.stop_wait_s(job)
    if not is_its_own:
        print(
            f"ray-rl: warning: {job} was not submitted by ray-rl: Ray kills it {wait_s} s after the signal, unless "
            "`ray start` of its head found RAY_JOB_STOP_WAIT_TIME_S in its environment; it may end without saving",
            file=sys.stderr,
        )
    print(jobs.stop(job))
    lines = jobs.logs(job).strip().splitlines()
    print("\n".join(lines[-1:]))
