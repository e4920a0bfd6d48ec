"""Builds the models that workers hold, from the configuration of a run. The `build_*` functions run in the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from ray_rl.app.engines import transport
from ray_rl.cluster.held import Policy, SavedTrainer
from ray_rl.config import RunConfig
from ray_rl.config.adapter import Lora
from ray_rl.config.losses import CustomLoss
from ray_rl.config.roles import keeps_start
from ray_rl.config.train import Trained
from ray_rl.data.chat import ChatTokenizer, uses_chat
from ray_rl.rewards.model.assignment import assignment
from ray_rl.rewards.model.held import RewardModels
from ray_rl.rewards.model.scorer import ModelScorer
from ray_rl.training.configured import policy_loss_of
from ray_rl.training.frozen import FrozenModel, FrozenSettings
from ray_rl.training.member import Member
from ray_rl.training.networks import PolicyNetwork, ValueNetwork
from ray_rl.training.objectives.policy import PolicyObjective
from ray_rl.training.objectives.value import ValueObjective
from ray_rl.training.settings import TrainSettings
from ray_rl.types import TrainBatch


def build_actor(config: RunConfig, folders: Sequence[str], member: Member, *, threads: int = 1) -> Policy:
    """Loads a rank of the policy under training.

    Args:
        config: the configuration of the run, with `model.dtype` resolved.
        folders: the folders of the role's models.
        member: this rank.
        threads: the number of threads of this process on CPU.

    Raises:
        DataError: the checkpoint is not that of the model.
        ConfigError: the log-probabilities of the loss would not be the model's.
    """
    return Policy(
        *policy_parts(config, folders),
        member,
        threads=threads,
        transport=transport(config),
        chat_template=partial(changed_template, config, folders[0]),
        chat=uses_chat(config.data),
        exports_adapters=config.exports_adapters,
        publishes_adapters=config.publishes_adapters,
    )


def build_critic(
    config: RunConfig, folders: Sequence[str], member: Member, *, threads: int = 1
) -> SavedTrainer[TrainBatch]:
    """Loads a rank of the critic; arguments as for `build_actor`."""
    return SavedTrainer(*value_parts(config, folders), member, threads=threads)


def build_reference(config: RunConfig, folders: Sequence[str], member: Member, *, threads: int = 1) -> FrozenModel:
    """Loads a worker of the frozen reference; arguments as for `build_actor`."""
    role = config.reference
    assert role is not None, "the run has no reference"
    settings = FrozenSettings(
        role=role, layout=config.train, dtype=config.model.dtype, accelerator=config.cluster.accelerator
    )
    return FrozenModel(policy_network(config, folders[0], key="reference.path"), settings, member, threads=threads)


def build_reward_models(config: RunConfig, folders: Sequence[str], member: Member, *, threads: int = 1) -> RewardModels:
    """Loads the reward models of a worker; `folders` has all of them, in the order of the reward's `paths`."""
    judges = config.reward_models
    assert judges is not None, "the run has no reward models"
    on_cpu = config.cluster.accelerator == "cpu"
    if on_cpu:
        torch.set_num_threads(threads)
    given = assignment(len(folders), judges.workers, member.rank)
    load = partial(
        ModelScorer.load,
        # What is scored together changes the last bits, and which groups wait together is a matter of time.
        micro_batch_tokens=1 if config.run.deterministic else judges.micro_batch_tokens,
        max_tokens=judges.max_tokens,
        dtype=config.model.dtype,
        attention="sdpa",
        trust_remote_code=config.model.trust_remote_code,
        device="cpu" if on_cpu else "cuda:0",
    )
    return RewardModels([load(folders[model]) for model in given.models], given.rows)


def policy_parts(config: RunConfig, folders: Sequence[str]) -> tuple[PolicyObjective, TrainSettings]:
    """Returns the policy with its loss, and the settings that train the policy."""
    algorithm = config.online
    objective = PolicyObjective(
        network=trained_policy(config, folders),
        settings=policy_loss_of(algorithm),
        reduction=algorithm.reduction,
        denominator=algorithm.reduction_denominator or float(config.most_tokens),
        has_kl_loss=algorithm.kl.place == "loss",
        keeps_all_rows=isinstance(algorithm.loss, CustomLoss),
    )
    return objective, train_settings(config, config.train)


def value_parts(config: RunConfig, folders: Sequence[str]) -> tuple[ValueObjective, TrainSettings]:
    """Returns the critic with its loss, and the settings that train the critic. The run must have a critic."""
    role = config.critic
    assert role is not None, "the run has no critic"
    network = ValueNetwork(
        folder=folders[0],
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        gradient_checkpointing=role.gradient_checkpointing,
        adapter=started_adapter(config, folders),
        adapter_seed=config.run.seed,
    )
    return ValueObjective(network=network, clip=role.value_clip), train_settings(config, role)


def trained_policy(config: RunConfig, folders: Sequence[str]) -> PolicyNetwork:
    """Returns the language model that is trained."""
    return replace(
        policy_network(config, folders[0], key="model.path"),
        gradient_checkpointing=config.train.gradient_checkpointing,
        frozen_layers=config.train.frozen_layers,
        adapter=started_adapter(config, folders),
        adapter_seed=config.run.seed,
        keeps_start=keeps_start(config),
    )


def started_adapter(config: RunConfig, folders: Sequence[str]) -> Lora | None:
    """Returns the adapters of a role; `folders` has its model, and the folder of adapters that it continues, if any."""
    adapter = config.model.adapter
    return None if adapter is None else adapter.model_copy(update={"path": folders[1] if folders[1:] else None})


def policy_network(config: RunConfig, folder: str, *, key: str) -> PolicyNetwork:
    """Returns a language model of the run; `key` of the configuration names its folder."""
    return PolicyNetwork(
        folder=folder,
        key=key,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        chunk_tokens=config.logit_chunk_tokens,
        temperature=1.0 if config.is_offline else config.rollout.temperature,
    )


def train_settings(config: RunConfig, role: Trained) -> TrainSettings:
    """Returns how a model of the run is trained; `role` is its section. Without rollouts a batch is one step."""
    update_epochs, minibatches = (
        (1, 1) if config.is_offline else (config.online.update_epochs, config.online.minibatches)
    )
    return TrainSettings(
        role=role,
        dtype=config.model.dtype,
        accelerator=config.cluster.accelerator,
        seed=config.run.seed,
        run_steps=config.steps,
        update_epochs=update_epochs,
        minibatches=minibatches,
        on_nonfinite=config.train.on_nonfinite,
    )


def changed_template(config: RunConfig, folder: str) -> str | None:
    """Returns the chat template of an export; None keeps the model's own."""
    return ChatTokenizer.of_policy(config.model, config.data, folder).changed_template
