"""The roles of a run, written once: code that works on all roles loops over `roles_of(config)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ray_rl.config.rewards import ModelReward
from ray_rl.config.rollout import RolloutConfig
from ray_rl.config.train import CriticConfig, ReferenceConfig, TrainConfig, Trained

if TYPE_CHECKING:
    from ray_rl.config.run import RunConfig

ACTOR, CRITIC, REFERENCE, REWARD, ROLLOUT = "actor", "critic", "reference", "reward", "rollout"

Sharing = Literal["actor", "critic", "reference", "reward", "rollout"]
"""A role that may share GPUs with another one."""

USUAL_PAIRS = ((ACTOR, REFERENCE), (CRITIC, REWARD))
"""Roles that share GPUs well, because they do not compute at the same time."""


@dataclass(frozen=True, slots=True)
class Role:
    """The workers of a run that hold the same models and do the same work."""

    name: str
    key: str
    """Key of the section of the configuration."""
    settings: TrainConfig | CriticConfig | ReferenceConfig | ModelReward | RolloutConfig
    """That section."""
    workers: int
    """Number of workers with one GPU each; for `rollout`, of engines with `rollout.tensor_parallel` GPUs each."""
    workers_key: str
    """The key that sets this number."""
    models: tuple[tuple[str, str], ...]
    """Key and path of each model that the workers load at the start."""

    @property
    def trained(self) -> Trained | None:
        """The settings, if DeepSpeed trains the model."""
        return self.settings if isinstance(self.settings, Trained) else None


def roles_of(config: RunConfig) -> tuple[Role, ...]:
    """Returns the roles that the run has, in the order in which their workers are placed."""
    policy, train, rollout = ("model.path", config.model.path), config.train, config.rollout
    roles = [Role(ACTOR, "train", train, train.workers, "train.workers", (policy,))]
    if config.critic is not None and not config.is_offline:
        models: tuple[tuple[str, str], ...] = (
            policy if config.critic.path is None else ("critic.path", config.critic.path),
        )
        roles.append(Role(CRITIC, "critic", config.critic, config.critic.workers, "critic.workers", models))
    frozen = config.reference
    if frozen is not None and _compares_during_training(config, frozen) and not is_base_reference(config, frozen):
        models = (policy if frozen.path is None else ("reference.path", frozen.path),)
        roles.append(Role(REFERENCE, "reference", frozen, frozen.workers, "reference.workers", models))
    if config.is_offline:
        return tuple(roles)
    judges = config.reward_models
    if judges is not None:
        key = config.reward_models_key
        models = tuple((f"{key}.paths.{index}", path) for index, path in enumerate(judges.paths))
        roles.append(Role(REWARD, key, judges, judges.workers, f"{key}.workers", models))
    roles.append(Role(ROLLOUT, "rollout", rollout, rollout.engines, "rollout.engines", (policy,)))
    return tuple(roles)


def _compares_during_training(config: RunConfig, reference: ReferenceConfig) -> bool:
    if config.is_offline:
        return config.offline.needs_reference and reference.when == "during"
    return config.online.kl.coefficient > 0


def is_base_reference(config: RunConfig, reference: ReferenceConfig) -> bool:
    """Returns whether a reference is the actor without what it has learnt, which needs no workers of its own.

    It is the model without adapters, or with those that the run continues.
    """
    adapter = config.model.adapter
    return adapter is not None and reference.path in (None, config.model.path, adapter.path)


def keeps_start(config: RunConfig) -> bool:
    """Returns whether the actor keeps a frozen copy of the adapters that it continues, because the reference has them.

    With `reference.path` as `model.path` the reference is the model without them.
    """
    adapter, reference = config.model.adapter, base_reference(config)
    return (
        adapter is not None
        and adapter.path is not None
        and reference is not None
        and reference.path in (None, adapter.path)
    )


def base_reference(config: RunConfig) -> ReferenceConfig | None:
    """Returns the section of the reference if the run compares with the actor before training; else None."""
    reference = config.reference
    if reference is None or not is_base_reference(config, reference):
        return None
    needs_it = config.offline.needs_reference if config.is_offline else config.online.kl.coefficient > 0
    return reference if needs_it else None


def has_reference(config: RunConfig) -> bool:
    """Returns whether a reference works during training: in workers of its own, or in those of the actor."""
    return config.reference is not None and _compares_during_training(config, config.reference)


def models_of(config: RunConfig) -> tuple[tuple[str, str], ...]:
    """Returns key and path of every model that the run loads, once each, the policy first."""
    return tuple(dict.fromkeys(model for role in roles_of(config) for model in role.models))
