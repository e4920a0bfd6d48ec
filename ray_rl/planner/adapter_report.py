"""Prints what adapters save, in comparison with training all weights."""

from __future__ import annotations

from collections.abc import Iterator

from ray_rl.config import RunConfig
from ray_rl.config.roles import REFERENCE, roles_of
from ray_rl.planner.adapters import Adapters, TrainedModel
from ray_rl.planner.advice import changed
from ray_rl.planner.assess import Assessment, known_shape, role_memories
from ray_rl.planner.sampling import sync_bytes
from ray_rl.planner.states import MASTER, MOMENTS
from ray_rl.sizes import GIB


def checkpoint_bytes(config: RunConfig) -> int:
    """Returns the bytes of a checkpoint: the float32 weights and the two moments of everything that is trained."""
    trained = [(role.trained, known_shape(*role.models[0])) for role in roles_of(config) if role.trained is not None]
    return (MASTER + MOMENTS) * sum(TrainedModel.of(config, settings, shape).trained for settings, shape in trained)


def adapter_lines(config: RunConfig, assessment: Assessment) -> Iterator[str]:
    """Yields how much is trained, and what that saves; nothing for a run that trains all weights."""
    policy = known_shape("model.path", config.model.path)
    adapters = Adapters.of(config, policy)
    if adapters is None:
        return
    model, count = TrainedModel.of(config, config.train, policy), len(adapters.targets)
    in_4_bits = f", over {model.in_4_bits / 1e6:,.0f}M weights in 4 bits" if model.in_4_bits else ""
    yield (
        f"adapters: rank {adapters.lora.rank}, of {count} {'matrix' if count == 1 else 'matrices'} of each layer: "
        f"{model.trained / 1e6:,.1f}M of {model.parameters / 1e6:,.0f}M parameters of the actor are trained "
        f"({model.trained / model.parameters:.1%}){in_4_bits}"
    )
    whole = changed(config, {"model.adapter": None})
    yield "  saves, compared with training all weights: " + "; ".join(_saved(config, assessment, whole))


def _saved(config: RunConfig, assessment: Assessment, whole: RunConfig) -> Iterator[str]:
    memories, _ = role_memories(whole, assessment.cluster)
    for role in roles_of(config):
        if role.trained is not None:
            yield _less(role.name, assessment.memories[role.name].peak, memories[role.name].peak, of=" of a worker")
    if not config.is_offline:
        policy = known_shape("model.path", config.model.path)
        yield _less("publish", sync_bytes(config, policy), sync_bytes(whole, policy))
    yield _less("checkpoint", checkpoint_bytes(config), checkpoint_bytes(whole))
    if REFERENCE in memories.keys() - assessment.memories.keys():
        peak = memories[REFERENCE].peak / GIB
        yield f"the reference ({peak:.2f} GiB of a worker), because the actor without adapters is the reference"


def _less(what: str, here: float, there: float, *, of: str = "") -> str:
    return f"{what} {1 - here / there:.1%} ({here / GIB:,.2f} in place of {there / GIB:,.2f} GiB{of})"
