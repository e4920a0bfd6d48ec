"""Rules for roles and hardware. Each yields one message per violation."""

from __future__ import annotations

from collections.abc import Iterator

from ray_rl.catalog.models import find_shape
from ray_rl.config.gpus import asked_gpus, sharers_of_engines
from ray_rl.config.loading.explain import show
from ray_rl.config.roles import ACTOR, ROLLOUT, roles_of
from ray_rl.config.run import RunConfig


def hardware_rules(config: RunConfig, visible_gpus: int) -> Iterator[str]:
    """Checks shared GPUs, tensor parallelism, the number of GPUs and the weight transport.

    Args:
        config: the configuration of the run.
        visible_gpus: the GPUs of this machine, for a run that starts its own cluster here.
    """
    yield from _colocation(config)
    yield from _engines_that_sleep(config)
    yield from _tensor_parallel(config)
    yield from _hardware(config, visible_gpus)


def _colocation(config: RunConfig) -> Iterator[str]:
    workers = {role.name: role for role in roles_of(config)}
    seen: dict[str, int] = {}
    for index, group in enumerate(config.cluster.colocate):
        if len(group) < 2:
            yield (
                f"cluster.colocate.{index}={show(group)}: an entry needs two roles, which share GPUs; "
                "list two roles, for example [actor, reference], or remove the entry"
            )
        for role in group:
            if role in seen:
                yield (
                    f"cluster.colocate.{index}={show(group)}: {role} is already in cluster.colocate.{seen[role]}; "
                    f"list {role} once"
                )
            seen.setdefault(role, index)
        present = [role for role in group if role in workers and role != ROLLOUT]
        for role in present[1:]:
            other, first = workers[role], workers[present[0]]
            if other.workers != first.workers:
                yield (
                    f"cluster.colocate.{index}={show(group)}: worker i of each role shares GPU i, but "
                    f"{first.workers_key}={first.workers} and {other.workers_key}={other.workers}; set "
                    f"{other.workers_key}={first.workers}"
                )


def _engines_that_sleep(config: RunConfig) -> Iterator[str]:
    """Checks engines that share GPUs with other roles, which takes turns."""
    rollout, sharers = config.rollout, sharers_of_engines(config)
    if not sharers:
        if rollout.sleep_level != 1:
            yield (
                f"rollout.sleep_level={rollout.sleep_level}: engines with GPUs of their own never sleep; remove it, or "
                "list actor and rollout together in cluster.colocate"
            )
        return
    frozen = "model.adapter" if config.model.adapter else "train.frozen_layers" if config.train.frozen_layers else None
    if rollout.sleep_level == 2 and frozen:
        yield (
            f"rollout.sleep_level=2: with {frozen}, weights that training never changes are published once, and "
            "engines would drop them; set rollout.sleep_level=1"
        )
    where = f"cluster.colocate={show(config.cluster.colocate)}"
    if ACTOR not in sharers:
        yield (
            f"{where}: engines share GPUs only with the actor, whose weights they read there; add actor to their entry "
            "or remove rollout"
        )
    role = next(role for role in roles_of(config) if role.name == sharers[0])
    size = rollout.tensor_parallel
    if rollout.engines * size != role.workers:
        remedy = (
            f"set rollout.engines={role.workers // size}"
            if role.workers % size == 0
            else f"set {role.workers_key} to a multiple of {size}, and rollout.engines to that divided by {size}"
        )
        yield (
            f"{where}: engines use every GPU of the roles they share with, but rollout.engines={rollout.engines} * "
            f"rollout.tensor_parallel={size} and {role.workers_key}={role.workers}; {remedy}"
        )
    if rollout.max_staleness > 0:
        yield (
            f"rollout.max_staleness={rollout.max_staleness}: engines that share GPUs with the actor sleep while it is "
            "trained, so that they cannot sample ahead; set rollout.max_staleness=0, or give the engines GPUs of their "
            "own"
        )


def _tensor_parallel(config: RunConfig) -> Iterator[str]:
    # Each GPU of an engine has equally many query heads, and whole key heads or a copy of one.
    shape = find_shape(config.model.path)
    size = config.rollout.tensor_parallel
    if shape is None or size in shape.tensor_parallel_sizes():
        return
    sizes = ", ".join(map(str, shape.tensor_parallel_sizes()))
    yield (
        f"rollout.tensor_parallel={size}: does not divide the heads of {config.model.path}, {shape.heads} for queries "
        f"and {shape.kv_heads} for keys; set rollout.tensor_parallel to one of {sizes}"
    )


def _hardware(config: RunConfig, visible_gpus: int) -> Iterator[str]:
    cluster = config.cluster
    if cluster.accelerator == "cpu":
        if config.weight_sync.backend == "nccl":
            yield (
                "weight_sync.backend=nccl: NCCL needs GPUs, and cluster.accelerator=cpu; "
                "set weight_sync.backend=auto, or cluster.accelerator=gpu"
            )
        return
    if config.weight_sync.backend == "shared_memory":
        yield (
            "weight_sync.backend=shared_memory: needs trainers and engines on CPUs of the same host, and "
            "cluster.accelerator=gpu; set weight_sync.backend=auto"
        )
    if config.weight_sync.backend == "nccl" and sharers_of_engines(config):
        yield (
            "weight_sync.backend=nccl: NCCL cannot connect two processes on one GPU, and rollout is in "
            "cluster.colocate; set weight_sync.backend=auto"
        )
    if config.weight_sync.backend == "ipc" and not sharers_of_engines(config):
        yield (
            "weight_sync.backend=ipc: engines read weights from memory of the actor's GPUs, and rollout is not in "
            "cluster.colocate; set weight_sync.backend=auto"
        )
    asks = asked_gpus(config)
    asked = sum(ask.gpus for ask in asks)
    roles = f"{asked} GPUs are needed: " + " + ".join(map(str, asks))
    there = cluster.nodes * cluster.gpus_per_node
    if asked > there:
        yield (
            f"cluster.nodes={cluster.nodes} * cluster.gpus_per_node={cluster.gpus_per_node}: the cluster has {there} "
            f"GPUs, but {roles}; raise cluster.nodes to {-(-asked // cluster.gpus_per_node)} or make the roles smaller"
        )
    if config.rollout.tensor_parallel > cluster.gpus_per_node:
        yield (
            f"rollout.tensor_parallel={config.rollout.tensor_parallel}: an engine never spans nodes, and "
            f"cluster.gpus_per_node={cluster.gpus_per_node}; "
            f"set rollout.tensor_parallel to {cluster.gpus_per_node} or less"
        )
    if cluster.address is None and asked > visible_gpus:
        yield (
            f"cluster.accelerator=gpu: this machine has {visible_gpus} usable GPUs, but {roles}; "
            "set cluster.accelerator=cpu, or cluster.address to a Ray cluster with enough GPUs"
        )
