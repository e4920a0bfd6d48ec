"""Rules for the kind of each model: a policy is a language model, and a reward is a reward model. Loads without torch.

The same rules hold for folders that exist, and in a pipeline for models that an earlier stage will make.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ray_rl.catalog.model_kinds import Kind, architecture_of, kind_of
from ray_rl.catalog.models import PACKAGED_MODELS
from ray_rl.catalog.shapes import read_settings
from ray_rl.config.offline import ProcessRewardModel, RewardModel
from ray_rl.config.run import RunConfig
from ray_rl.config.train import CriticConfig, ReferenceConfig

_MADE_BY: dict[Kind, str] = {
    "language model": "a run that trains one, for example with algorithm.kind=sft",
    "reward model": "a run with algorithm.kind=reward_model",
    "process reward model": "a run with algorithm.kind=process_reward_model",
}


@dataclass(frozen=True, slots=True)
class Use:
    """A model that a run loads, and the kinds that it can be."""

    key: str
    path: str
    user: str
    """Name of the part that loads the model, for messages."""
    kinds: tuple[Kind, ...]

    @property
    def wanted(self) -> str:
        """Which kinds the user takes."""
        return f"{self.user} takes a {' or a '.join(self.kinds)}"

    @property
    def remedy(self) -> str:
        """How to get a model of the right kind."""
        return f"the model of {_MADE_BY[self.kinds[0]]}"


def made_by(config: RunConfig) -> Kind:
    """Returns the kind of the models that a run exports."""
    match config.algorithm:
        case RewardModel():
            return "reward model"
        case ProcessRewardModel():
            return "process reward model"
        case _:
            return "language model"


def uses_of(config: RunConfig) -> Iterator[Use]:
    """Yields each model that the run loads, with the kinds that it can be.

    A reward model starts from a language model or from one of its own kind: the heads of the two kinds differ.
    """
    own = made_by(config)
    kinds: tuple[Kind, ...] = ("language model",) if own == "language model" else ("language model", own)
    trained = f"algorithm.kind={config.algorithm.kind}"
    yield Use("model.path", config.model.path, trained, kinds)
    adapter = config.model.adapter
    if adapter is not None and adapter.path is not None:
        yield Use("model.adapter.path", adapter.path, trained, kinds)
    for name, section in config:
        if isinstance(section, CriticConfig) and section.path is not None:
            yield Use(f"{name}.path", section.path, f"a {name}", ("language model", "reward model"))
        if isinstance(section, ReferenceConfig) and section.path is not None:
            yield Use(f"{name}.path", section.path, f"a {name}", ("language model",))
    judges = config.reward_models
    if judges is not None:
        for index, path in enumerate(judges.paths):
            yield Use(f"{config.reward_models_key}.paths.{index}", path, "a reward", ("reward model",))


def model_kind_rules(config: RunConfig, *, stand_ins: Collection[str]) -> Iterator[str]:
    """Checks the kind of every model whose config.json is on this machine.

    Args:
        config: the configuration of the run.
        stand_ins: models in `rewards` that stand for reward models which do not exist yet.
    """
    for use in uses_of(config):
        architecture = "" if use.path in PACKAGED_MODELS else architecture_of(read_settings(use.path) or {})
        kind = "language model" if use.path in PACKAGED_MODELS else kind_of(architecture)
        is_stand_in = use.path in stand_ins and use.user == "a reward"
        if kind is None or kind in use.kinds or is_stand_in:
            continue
        named = f" ({architecture})" if architecture else ""
        if kind == "language model":
            yield (
                f"{use.key}={use.path}: is a language model{named} and no classifier, so it has no head that scores; "
                f"train it with algorithm.kind=reward_model, and set {use.key} to the export of that run"
            )
        else:
            yield f"{use.key}={use.path}: is a {kind}{named}, and {use.wanted}; set {use.key} to {use.remedy}"
