"""Starting or joining a Ray cluster."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ray_rl.config import RunConfig
from ray_rl.errors import ClusterError, ConfigError
from ray_rl.planner.plan import Plan

OBJECT_STORE_BYTES = 2**30
"""Of a local cluster: batches are integers, megabytes at most."""

DRIVER_CPUS = 1
"""Declared beside what the workers need, so that Ray's own tasks find a slot."""


@contextmanager
def ray_session(config: RunConfig, plan: Plan) -> Iterator[None]:
    """A connection to `cluster.address`, or a local cluster that ends with the block.

    A local cluster listens on loopback only; `environment.prepare_environment` gave it a token.

    Raises:
        ConfigError: the plan needs more GPUs than the cluster has.
        ClusterError: the cluster cannot be reached.
    """
    try:
        if config.cluster.address is None:
            _start_local(plan)
        else:
            ray.init(address=config.cluster.address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"cluster.address={config.cluster.address}: Ray did not start or answer: {error}") from error
    try:
        _require_gpus(config, plan)
        yield
    finally:
        ray.shutdown()


def _start_local(plan: Plan) -> None:
    ray.init(
        address="local",
        num_cpus=math.ceil(plan.cpus) + DRIVER_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )


def _require_gpus(config: RunConfig, plan: Plan) -> None:
    available = int(ray.cluster_resources().get("GPU", 0))
    if plan.gpus > available:
        asked = ", ".join(f"{'+'.join(group.roles)} {group.bundles * group.gpus}" for group in plan.groups)
        raise ConfigError(
            f"the roles ask for {plan.gpus} GPUs ({asked}) and the Ray cluster at "
            f"{config.cluster.address or 'this machine'} has {available}; use fewer workers, colocate roles, or set "
            "cluster.accelerator=cpu"
        )
