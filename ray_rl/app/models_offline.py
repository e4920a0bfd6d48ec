"""Builds what the workers of a run without rollouts hold: the model with its loss, from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import assert_never

from ray_rl.app.models import changed_template, started_adapter, train_settings, trained_policy
from ray_rl.cluster.held import ExportedTrainer
from ray_rl.config import RunConfig
from ray_rl.config import offline as kinds
from ray_rl.data.chat import uses_chat
from ray_rl.training.configured import kto_of, pair_loss_of
from ray_rl.training.member import Member
from ray_rl.training.networks import ScoreNetwork
from ray_rl.training.objectives.objective import Objective
from ray_rl.training.objectives.preference import KtoObjective, PairObjective
from ray_rl.training.objectives.ranking import RewardObjective, StepObjective
from ray_rl.training.objectives.supervised import SupervisedObjective
from ray_rl.training.settings import TrainSettings
from ray_rl.types import OfflineBatch, ScoredAt


def offline_parts(config: RunConfig, folders: Sequence[str]) -> tuple[Objective[OfflineBatch], TrainSettings]:
    """Returns the model with its loss, and the settings that train it.

    Args:
        config: the configuration of the run, with `model.dtype` and the number of steps resolved.
        folders: the folder of the model from which the run starts, and of the adapters that it continues, if any.
    """
    return _objective(config, folders), train_settings(config, config.train)


def _objective(config: RunConfig, folders: Sequence[str]) -> Objective[OfflineBatch]:
    algorithm = config.offline
    match algorithm:
        case kinds.Sft():
            return SupervisedObjective(network=trained_policy(config, folders), kind=algorithm.loss)
        case kinds.Kto():
            return KtoObjective(network=trained_policy(config, folders), settings=kto_of(algorithm))
        case kinds.RewardModel():
            network = _scorer(config, folders, "end", members=algorithm.members)
            return RewardObjective(network=network, centering=algorithm.centering, seed=config.run.seed)
        case kinds.ProcessRewardModel():
            return StepObjective(network=_scorer(config, folders, "steps", members=1))
        case kinds.Dpo() | kinds.Ipo() | kinds.Orpo() | kinds.SimPo():
            return PairObjective(
                name=algorithm.kind, network=trained_policy(config, folders), pair_loss=pair_loss_of(algorithm)
            )
        case _:
            assert_never(algorithm)


def _scorer(config: RunConfig, folders: Sequence[str], scored_at: ScoredAt, *, members: int) -> ScoreNetwork:
    return ScoreNetwork(
        folder=folders[0],
        scored_at=scored_at,
        members=members,
        head_seed=config.run.seed,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        gradient_checkpointing=config.train.gradient_checkpointing,
        frozen_layers=config.train.frozen_layers,
        adapter=started_adapter(config, folders),
    )


def build_learner(
    config: RunConfig, folders: Sequence[str], member: Member, *, threads: int = 1
) -> ExportedTrainer[OfflineBatch]:
    """Loads a rank of the model that learns from examples; arguments as for `build_actor`."""
    objective, settings = offline_parts(config, folders)
    return ExportedTrainer(
        objective,
        settings,
        member,
        threads=threads,
        source=folders[0],
        chat_template=partial(changed_template, config, folders[0]),
        chat=uses_chat(config.data),
        adapter=config.model.adapter,
        exports_adapters=config.exports_adapters,
    )
