"""How the models of a run are checked, loaded and evaluated, trained or frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from ray_rl.config.adapter import Lora
from ray_rl.models.adapter import inject
from ray_rl.models.classifier import KEY, ScoreModel, classifier_skeleton, load_classifier
from ray_rl.models.continued import keep_copy, load_values
from ray_rl.models.freezing import freeze
from ray_rl.models.loading import check_checkpoint, load_causal_lm, load_model_config
from ray_rl.models.policy import ModelInputs, PolicyModel
from ray_rl.models.value import ValueModel, check_value_checkpoint, load_value_model
from ray_rl.training.logit_check import require_own_logprobs
from ray_rl.training.share import Share
from ray_rl.types import ScoredAt

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Network(Protocol):
    """A model that gives one number for each loss token. Describes it and holds no weights."""

    def check(self) -> PretrainedConfig:
        """Checks names and shapes in the checkpoint, reading no weights, and returns transformers' configuration.

        Raises:
            DataError: there is no such model, or its checkpoint has other names or shapes.
        """

    def build(self, attention: str) -> nn.Module:
        """Loads the model with an attention of transformers; raises DataError if it cannot be loaded whole."""

    def verify(self, model: nn.Module, share: Share) -> None:
        """Tries the loaded model, a collective under ZeRO-3; raises ConfigError if its numbers would be wrong."""

    def score(self, model: nn.Module, inputs: ModelInputs) -> Tensor:
        """Returns float32 [N], the number of each loss token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyNetwork:
    """A causal language model, which gives log-probabilities."""

    folder: str
    """The folder of the model, or its hub name."""
    key: str
    """The key of the run's configuration that names it, for messages."""
    dtype: str
    trust_remote_code: bool
    chunk_tokens: int
    """Positions whose logits exist at once."""
    temperature: float
    """The temperature of the sampler."""
    gradient_checkpointing: bool = False
    frozen_layers: int = 0
    """Decoder layers from the first on that are not trained (see `freeze`)."""
    adapter: Lora | None = None
    """Adapters, which alone are trained; None trains all weights."""
    adapter_seed: int = 0
    """The seed of the matrices A."""
    keeps_start: bool = False
    """Whether the reference has the adapters that the run continues, so that a frozen copy of them is kept."""

    def check(self) -> PretrainedConfig:
        """Checks names and shapes (see `check_checkpoint`)."""
        model_config = load_model_config(self.folder, trust_remote_code=self.trust_remote_code, key=self.key)
        check_checkpoint(self.folder, trust_remote_code=self.trust_remote_code, key=self.key)
        return model_config

    def build(self, attention: str) -> PolicyModel:
        """Loads the model (see `load_causal_lm`)."""
        causal_lm = load_causal_lm(
            self.folder,
            dtype=self.dtype,
            attention=attention,
            trust_remote_code=self.trust_remote_code,
            key=self.key,
        )
        if self.gradient_checkpointing:
            causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        freeze(causal_lm, layers=self.frozen_layers)
        if self.adapter is not None:
            causal_lm.requires_grad_(False)
            _adapt(causal_lm.base_model, self.adapter, seed=self.adapter_seed, key=self.key)
            if self.keeps_start:
                keep_copy(causal_lm.base_model, self.adapter)
        return PolicyModel(causal_lm, chunk_tokens=self.chunk_tokens, temperature=self.temperature)

    def verify(self, model: nn.Module, share: Share) -> None:
        """Compares the log-probabilities with those of the model's own logits (see `require_own_logprobs`)."""
        require_own_logprobs(
            model,
            share,
            model_config=load_model_config(self.folder, trust_remote_code=self.trust_remote_code, key=self.key),
            dtype=self.dtype,
            name=f"{self.key}={self.folder}",
        )

    def score(self, model: nn.Module, inputs: ModelInputs) -> Tensor:
        """Returns the log-probabilities of the loss tokens."""
        logprobs_N: Tensor = model(inputs, with_entropy=False)[0]
        return logprobs_N


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueNetwork:
    """A decoder with a head of one number, which gives values."""

    folder: str
    """The folder of a language model or a reward model, or its hub name."""
    dtype: str
    trust_remote_code: bool
    gradient_checkpointing: bool
    adapter: Lora | None = None
    """Adapters, which are trained with the head; None trains all weights."""
    adapter_seed: int = 0
    """The seed of the matrices A."""

    def check(self) -> PretrainedConfig:
        """Checks names and shapes (see `check_value_checkpoint`)."""
        check_value_checkpoint(self.folder, trust_remote_code=self.trust_remote_code)
        return load_model_config(self.folder, trust_remote_code=self.trust_remote_code, key="critic.path")

    def build(self, attention: str) -> ValueModel:
        """Loads the model (see `load_value_model`)."""
        model = load_value_model(
            self.folder, dtype=self.dtype, attention=attention, trust_remote_code=self.trust_remote_code
        )
        if self.gradient_checkpointing:
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        if self.adapter is not None:
            _adapt(model.backbone, self.adapter, seed=self.adapter_seed, key="critic.path")
        return model

    def verify(self, model: nn.Module, share: Share) -> None:
        """Does nothing: the model's own forward pass has no values to compare with."""

    def score(self, model: nn.Module, inputs: ModelInputs) -> Tensor:
        """Returns the values of the states before the loss tokens."""
        values_N: Tensor = model(inputs)
        return values_N


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreNetwork:
    """A classifier: a reward model or a process reward model, or an ensemble of them."""

    folder: str
    """The folder of a classifier or of a language model, or its hub name."""
    scored_at: ScoredAt
    members: int
    """Number of classifiers."""
    head_seed: int
    """The seed of the new head and adapters of the first member; those of the others follow it."""
    dtype: str
    trust_remote_code: bool
    gradient_checkpointing: bool
    frozen_layers: int
    adapter: Lora | None = None
    """Adapters, which are trained with the head; None trains all weights."""

    def check(self) -> PretrainedConfig:
        """Checks names and shapes (see `classifier_skeleton`)."""
        classifier_skeleton(self.folder, self.scored_at, trust_remote_code=self.trust_remote_code)
        return load_model_config(self.folder, trust_remote_code=self.trust_remote_code)

    def build(self, attention: str) -> ScoreModel:
        """Loads the model (see `load_classifier`)."""
        members = [
            load_classifier(
                self.folder,
                self.scored_at,
                head_seed=self.head_seed + index,
                dtype=self.dtype,
                attention=attention,
                trust_remote_code=self.trust_remote_code,
            )
            for index in range(self.members)
        ]
        for index, classifier in enumerate(members):
            if self.gradient_checkpointing:
                classifier.gradient_checkpointing_enable({"use_reentrant": False})
            freeze(classifier, layers=self.frozen_layers)
            if self.adapter is not None:
                _adapt(classifier.base_model, self.adapter, seed=self.head_seed + index, key=KEY)
        return ScoreModel(members)

    def verify(self, model: nn.Module, share: Share) -> None:
        """Does nothing: a head of its own has no other code to compare with."""

    def score(self, model: nn.Module, inputs: ModelInputs) -> Tensor:
        """Returns the scores of the states before the loss tokens, means over the members."""
        return self.each(model, inputs).mean(0)

    def each(self, model: nn.Module, inputs: ModelInputs) -> Tensor:
        """Returns float32 [M, N], the scores of each member."""
        scores_MN: Tensor = model(inputs)
        return scores_MN


def _adapt(backbone: nn.Module, adapter: Lora, *, seed: int, key: str) -> None:
    """Adds adapters to a loaded backbone: new ones, or with the values of the folder that they continue."""
    inject(backbone, adapter, seed=seed, key=key)
    if adapter.path is not None:
        load_values(backbone, adapter.path)
