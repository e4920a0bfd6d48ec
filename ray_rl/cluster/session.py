"""Starts or joins a Ray cluster."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from ray_rl.cluster.bare_node import bare_node
from ray_rl.cluster.placement import wanted_and_there
from ray_rl.cluster.scratch import Scratch, private_folder, remove_leftovers
from ray_rl.errors import ClusterError, ConfigError, EngineError, WeightSyncError
from ray_rl.metrics.modes import make_folder, open_file
from ray_rl.planner.plan import Plan
from ray_rl.sizes import MIB

OBJECT_STORE_BYTES = 2**30
"""Size for a local cluster: batches are integers, megabytes at most."""

CONNECT_S = 10.0
"""Limit for the head of a cluster to accept a connection."""

DRIVER_CPUS = 1
"""CPUs in addition to those of the workers, so that Ray's own tasks find a slot."""

RAY_LOGS = ("raylet.out", "raylet.err", "gcs_server.out", "gcs_server.err")
RAY_LOG_BYTES = 2**20
"""Bytes at the end of each of Ray's logs that are kept when a local cluster fails."""


@contextmanager
def ray_session(
    address: str | None, plan: Plan, *, logs: Path | None = None, note: Callable[[str], None] = lambda text: None
) -> Iterator[Scratch | None]:
    """Connects to the cluster at `address`, or starts a local cluster that ends with the block.

    A local cluster listens on loopback only, has a token (see `environment.prepare_environment`), and keeps its sockets
    and files in a private folder, which the block gets.

    Args:
        address: `cluster.address`; None starts a local cluster.
        plan: the plan of the run.
        logs: the folder that gets Ray's own logs if a local cluster fails.
        note: called with a text if files of killed runs were removed.

    Raises:
        ConfigError: the plan needs more GPUs than the cluster has.
        ClusterError: the cluster cannot be reached or started.
    """
    if address is not None:
        with joined(address):
            require_gpus(plan, address)
            yield None
        return
    removed, _ = remove_leftovers()
    if removed:
        note(f"removed {sum(leftover.size_bytes for leftover in removed) / MIB:.1f} MiB that killed runs had left")
    with private_folder() as scratch, _keeping_logs(scratch, logs), _started(plan, scratch):
        require_gpus(plan, address)
        yield scratch


@contextmanager
def _keeping_logs(scratch: Scratch, to: Path | None) -> Iterator[None]:
    """Copies the ends of Ray's own logs into the run folder if the block fails because of Ray or a worker."""
    try:
        yield
    except (ClusterError, EngineError, WeightSyncError):
        if to is not None:
            with suppress(OSError):
                _copy_logs(scratch.ray / "session_latest" / "logs", to / "ray")
        raise


def _copy_logs(logs: Path, to: Path) -> None:
    make_folder(to, exist_ok=True)
    for name in RAY_LOGS:
        with suppress(OSError), (logs / name).open("rb") as log, open(to / name, "wb", opener=_opened) as copy:
            log.seek(max(0, os.fstat(log.fileno()).st_size - RAY_LOG_BYTES))
            copy.write(log.read())


def _opened(path: str, flags: int) -> int:
    return open_file(Path(path), flags)


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Connects to an existing cluster within the block.

    Raises:
        ClusterError: it cannot be reached.
    """
    try:
        _require_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"cluster.address={address}: no Ray started or answers there: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Fails immediately if nothing listens, where Ray would try for minutes. Leaves "auto" and ray:// to Ray."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


class _PlainErrors:
    """Turns errors that Ray raises as plain `Exception`, such as a slow start, into RuntimeError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is Exception:
            raise RuntimeError(str(error)) from error


@contextmanager
def _started(plan: Plan, scratch: Scratch) -> Iterator[None]:
    try:
        with _PlainErrors(), bare_node():
            ray.init(
                address="local",
                num_cpus=math.ceil(plan.cpus) + DRIVER_CPUS,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(scratch.ray),
            )
    except (ConnectionError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        said = str(error).rstrip(".")
        raise ClusterError(
            f"Ray did not start on this machine: {said}; the ends of its logs are in logs/ray/ of the run folder; "
            "check that the machine has free memory and idle cores (`ray-rl doctor`), then start again"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def require_gpus(plan: Plan, address: str | None) -> None:
    """Checks that the connected cluster has the GPUs of a plan, whether they are in use or not.

    Raises:
        ConfigError: it has fewer.
    """
    available = int(ray.cluster_resources().get("GPU", 0))
    if plan.gpus > available:
        asked = ", ".join(f"{'+'.join(group.roles)} {group.bundles * group.gpus}" for group in plan.groups)
        raise ConfigError(
            f"the roles ask for {plan.gpus} GPUs ({asked}) and the Ray cluster at {address or 'this machine'} has "
            f"{available}; use fewer workers, colocate roles, or set cluster.accelerator=cpu. By node:\n"
            f"{wanted_and_there(plan)}"
        )
