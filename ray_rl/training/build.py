"""The models of a run, from its configuration."""

from __future__ import annotations

from dataclasses import replace

from ray_rl.config import RunConfig
from ray_rl.config.train import Trained
from ray_rl.training.configured import policy_loss_of
from ray_rl.training.frozen import FrozenModel, FrozenSettings
from ray_rl.training.networks import PolicyNetwork, ValueNetwork
from ray_rl.training.objectives.policy import PolicyObjective
from ray_rl.training.objectives.value import ValueObjective
from ray_rl.training.process_group import Member
from ray_rl.training.settings import TrainSettings
from ray_rl.training.trainer import Trainer


def policy_trainer(config: RunConfig, folder: str, member: Member, *, threads: int = 1) -> Trainer:
    """Returns the trainer of the policy.

    Args:
        config: the configuration of the run, with `model.dtype` resolved.
        folder: the folder of the model to start from.
        member: this rank.
        threads: the number of threads of this process on CPU.

    Raises:
        DataError: the checkpoint is not that of the model.
        ConfigError: the log-probabilities of the loss would not be the model's.
    """
    return Trainer(*policy_parts(config, folder), member, threads=threads)


def policy_parts(config: RunConfig, folder: str) -> tuple[PolicyObjective, TrainSettings]:
    """Returns the policy with its loss, and how it is trained; arguments as for `policy_trainer`."""
    algorithm, train = config.algorithm, config.train
    network = policy_network(config, folder, key="model.path")
    objective = PolicyObjective(
        network=replace(
            network, gradient_checkpointing=train.gradient_checkpointing, frozen_layers=train.frozen_layers
        ),
        settings=policy_loss_of(algorithm),
        reduction=algorithm.reduction,
        denominator=algorithm.reduction_denominator or float(config.rollout.max_tokens),
        has_kl_loss=algorithm.kl.place == "loss",
    )
    return objective, train_settings(config, train)


def value_trainer(config: RunConfig, folder: str, member: Member, *, threads: int = 1) -> Trainer:
    """Returns the trainer of the critic; arguments as for `policy_trainer`."""
    return Trainer(*value_parts(config, folder), member, threads=threads)


def value_parts(config: RunConfig, folder: str) -> tuple[ValueObjective, TrainSettings]:
    """Returns the critic with its loss, and how it is trained; arguments as for `policy_trainer`."""
    role = config.critic
    assert role is not None, "the run has no critic"
    network = ValueNetwork(
        folder=folder,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        gradient_checkpointing=role.gradient_checkpointing,
    )
    return ValueObjective(network=network, clip=role.value_clip), train_settings(config, role)


def reference_model(config: RunConfig, folder: str, member: Member, *, threads: int = 1) -> FrozenModel:
    """Returns the frozen reference; arguments as for `policy_trainer`."""
    role = config.reference
    assert role is not None, "the run has no reference"
    settings = FrozenSettings(
        role=role, layout=config.train, dtype=config.model.dtype, accelerator=config.cluster.accelerator
    )
    return FrozenModel(policy_network(config, folder, key="reference.path"), settings, member, threads=threads)


def policy_network(config: RunConfig, folder: str, *, key: str) -> PolicyNetwork:
    """Returns a language model of the run; `key` of the configuration names its folder."""
    return PolicyNetwork(
        folder=folder,
        key=key,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        chunk_tokens=config.logit_chunk_tokens,
        temperature=config.rollout.temperature,
    )


def train_settings(config: RunConfig, role: Trained) -> TrainSettings:
    """Returns how a role of the run is trained."""
    return TrainSettings(
        role=role,
        dtype=config.model.dtype,
        accelerator=config.cluster.accelerator,
        seed=config.run.seed,
        run_steps=config.run.steps,
        update_epochs=config.algorithm.update_epochs,
        minibatches=config.algorithm.minibatches,
        on_nonfinite=config.train.on_nonfinite,
    )
