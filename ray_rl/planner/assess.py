"""Assesses a run before it starts: its layout, its memory, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_rl.catalog.models import KNOWN_SHAPES, find_shape
from ray_rl.catalog.shapes import FAMILIES, ModelShape
from ray_rl.config import RunConfig
from ray_rl.config.rewards import ModelReward
from ray_rl.config.roles import ACTOR, ROLLOUT, models_of, roles_of
from ray_rl.config.rollout import RolloutConfig
from ray_rl.config.train import CriticConfig, ReferenceConfig, TrainConfig
from ray_rl.errors import ConfigError
from ray_rl.planner.engines import KvCache, cpu_engine_memory, engine_memory
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.host import host_needs
from ray_rl.planner.memory import Bounds, Memory, reference_memory, reward_memory, trained_memory
from ray_rl.planner.plan import DeviceGroup, Plan, unbounded_plan, wanted
from ray_rl.planner.sharing import PUBLISH, SAMPLE, TRAIN, peak_of, phases_of, with_parked
from ray_rl.sizes import GIB

USABLE = 0.95
"""Share of a GPU that the plan uses: torch's allocator cannot fill the rest because of fragmentation."""


DTYPE = "dtype"
"""Stands for a role in a `Problem` if the GPU cannot compute in `model.dtype`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why the run does not fit."""

    roles: tuple[str, ...]
    """Roles that lack memory, or `DTYPE`; empty if there are too few GPUs."""
    text: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """A plan, its memory, and its verdict."""

    cluster: ClusterShape
    layout: Plan
    """The plan, on as many nodes as it needs."""
    memories: Mapping[str, Memory]
    """Memory of the fullest worker, by role."""
    cache: KvCache | None
    """The KV cache of an engine, if the run has engines."""
    hosts: tuple[float, ...]
    """Bytes of host memory that the workers take, by node."""
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        """Whether the run fits."""
        return not self.problems

    @property
    def host_bytes(self) -> float:
        """Memory that every node needs, which is that of the fullest node."""
        return max(self.hosts)

    @property
    def offloads(self) -> bool:
        """Whether state that does not fit the GPUs is in the memory of the nodes."""
        return any(memory.on_host for memory in self.memories.values())


def assess(config: RunConfig, cluster: ClusterShape) -> Assessment:
    """Returns the assessment of a valid configuration.

    Raises:
        ConfigError: the shape of a model is not known, or an engine is larger than a node.
    """
    layout = unbounded_plan(config, gpus_per_node=cluster.gpus_per_node)
    memories, cache = role_memories(config, cluster)
    hosts = host_needs(config, layout, memories)
    problems = []
    if layout.gpus and layout.nodes > cluster.nodes:
        problems.append(
            Problem(
                (),
                f"the roles need {layout.gpus} GPUs on {layout.nodes} nodes ({wanted(layout)}), and there are "
                f"{cluster.gpus} on {cluster.nodes}",
            )
        )
    if layout.gpus:
        problems += _memory_problems(layout, memories, cache, cluster, config)
        problems += _dtype_problems(config, cluster)
    problems += _host_problems(layout, memories, hosts, cluster)
    return Assessment(cluster, layout, memories, cache, hosts, tuple(problems))


def role_memories(config: RunConfig, cluster: ClusterShape) -> tuple[dict[str, Memory], KvCache | None]:
    """Returns the memory of a worker of every role, and the KV cache of an engine if there are engines.

    Raises:
        ConfigError: the shape of a model is not known.
    """
    memories: dict[str, Memory] = {}
    cache: KvCache | None = None
    for role in roles_of(config):
        shapes = [known_shape(key, path) for key, path in role.models]
        match role.settings:
            case TrainConfig() | CriticConfig() as trained:
                memories[role.name] = trained_memory(config, role.name, trained, shapes[0])
            case ReferenceConfig() as reference:
                memories[role.name] = reference_memory(config, reference, shapes[0])
            case ModelReward() as reward:
                memories[role.name] = reward_memory(config, reward, shapes)
            case RolloutConfig() if config.cluster.accelerator == "gpu":
                memories[role.name], cache = engine_memory(config, shapes[0], cluster.gpu)
            case _:
                assert isinstance(role.settings, RolloutConfig)
                memories[role.name], cache = cpu_engine_memory(config, shapes[0])
    return with_parked(config, memories), cache


def unknown_models(config: RunConfig) -> list[str]:
    """Returns the names of the run's models whose memory cannot be planned, because their shapes are unknown."""
    return [path for path in dict.fromkeys(path for _, path in models_of(config)) if find_shape(path) is None]


def known_shape(key: str, path: str) -> ModelShape:
    """Returns the shape of a model.

    Raises:
        ConfigError: the shape is not known.
    """
    shape = find_shape(path)
    if shape is None:
        owners = sorted({name.partition("/")[0] for name in KNOWN_SHAPES if "/" in name})
        raise ConfigError(
            f"{key}={path}: the shape of this model is not known, so its memory cannot be planned; set {key} to a "
            f"folder with its config.json (of the families {', '.join(FAMILIES)}), or to one of the models that the "
            f"planner knows of {', '.join(owners)}"
        )
    return shape


def _dtype_problems(config: RunConfig, cluster: ClusterShape) -> list[Problem]:
    if cluster.gpu.has_bfloat16 or Bounds(config).dtype == "float32":
        return []
    text = f"model.dtype={config.model.dtype}: {cluster.gpu.name} has no bfloat16, and vLLM refuses to emulate it"
    return [Problem((DTYPE,), text)]


def _host_problems(
    layout: Plan, memories: Mapping[str, Memory], hosts: tuple[float, ...], cluster: ClusterShape
) -> list[Problem]:
    """Returns the problem of the node that lacks the most memory, if any; on CPU, workers may run on any node."""
    if cluster.host_bytes is None:
        return []
    nodes = 1 if layout.gpus else cluster.nodes
    fullest = max(range(len(hosts)), key=lambda node: hosts[node])
    if hosts[fullest] <= nodes * cluster.host_bytes:
        return []
    roles = tuple(role for role in layout.workers if any(place.node == fullest for place in layout.places(role)))
    offloaded = sum(memories[role].on_host for role in roles for place in layout.places(role) if place.node == fullest)
    part = f", {offloaded / GIB:.1f} GiB of it offloaded from GPUs" if offloaded else ""
    where = f"node {fullest} needs" if layout.gpus else "the workers need"
    there = f"{cluster.host_bytes / GIB:.1f} GiB" + ("" if nodes == 1 else f" on each of {nodes} nodes")
    return [Problem(roles, f"memory of the host: {where} {hosts[fullest] / GIB:.1f} GiB{part}, and there are {there}")]


def _memory_problems(
    layout: Plan, memories: Mapping[str, Memory], cache: KvCache | None, cluster: ClusterShape, config: RunConfig
) -> list[Problem]:
    problems = []
    for group in layout.groups:
        if group.has_sleeping_engines:
            problems += _phase_problems(group, memories, cluster)
        elif group.roles != (ROLLOUT,):
            peak = peak_of(group.roles, memories)
            problems += _too_much(peak, group.roles, f"{' + '.join(group.roles)}:", cluster)
    if cache is not None and cache.sequences < 1:
        problems.append(
            Problem(
                (ROLLOUT,),
                f"rollout: {cache.total / GIB:.1f} GiB of each GPU remain for the KV cache, and one sequence of "
                f"{cache.longest} tokens takes {cache.token * cache.longest / GIB:.1f} GiB (rollout.tensor_parallel="
                f"{config.rollout.tensor_parallel}, rollout.gpu_memory_fraction={config.rollout.gpu_memory_fraction})",
            )
        )
    return problems


def _phase_problems(group: DeviceGroup, memories: Mapping[str, Memory], cluster: ClusterShape) -> list[Problem]:
    """Returns the problem of each phase in which the roles that take turns need too much."""
    others = tuple(role for role in group.roles if role != ROLLOUT)
    blamed = {SAMPLE: (ROLLOUT,), TRAIN: others, PUBLISH: (ACTOR, ROLLOUT)}
    return [
        problem
        for phase in phases_of(group.roles, memories)
        for problem in _too_much(
            phase.total, blamed[phase.name], f"{' + '.join(group.roles)} in phase {phase.name}:", cluster
        )
    ]


def _too_much(needed: float, roles: tuple[str, ...], where: str, cluster: ClusterShape) -> list[Problem]:
    limit = USABLE * cluster.gpu.memory_bytes
    text = (
        f"{where} {needed / GIB:.1f} GiB on a GPU, and {limit / GIB:.1f} of the "
        f"{cluster.gpu.memory_bytes / GIB:.1f} GiB of {cluster.gpu.name} can be used"
    )
    return [Problem(roles, text)] if needed > limit else []
