"""Classifiers under training: reward models, which score the end of a text, and process reward models (its steps).

They are transformers' own classes, so that their exports load there, in engines, and as judges of this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ray_rl.errors import ConfigError
from ray_rl.models.attention import SHARED_PREFIX
from ray_rl.models.float_head import FloatHead
from ray_rl.models.loading import load_model_config, load_whole, without_dropout
from ray_rl.models.policy import ModelInputs
from ray_rl.models.residual import keep_residual_in_float32
from ray_rl.models.reward_model import HEAD, has_linear_head
from ray_rl.types import ScoredAt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "model.path"
"""The key of these models in the configuration, for errors."""
LABELS: dict[ScoredAt, int] = {"end": 1, "steps": 2}
"""Number of labels: the score of a text; or wrong and right, for the step that ends at a token."""
HEAD_STD = 0.02
"""Standard deviation of the weights of a new head: transformers' own for these classes."""


def member_prefix(index: int) -> str:
    """Returns the prefix of the names of a member's parameters in `ScoreModel`."""
    return f"member_{index}."


class ScoreModel(nn.Module):
    """Classifiers whose forward returns a number for the state before each given token: one, or an ensemble.

    It is a module, so that DeepSpeed's hooks run around everything that uses parameters.
    """

    def __init__(self, members: Sequence[PreTrainedModel]) -> None:
        """Makes a model that shares the parameters of classifiers from `load_classifier`."""
        super().__init__()
        self._members = [member_prefix(index) for index in range(len(members))]
        for prefix, member in zip(self._members, members, strict=True):
            self.add_module(prefix.removesuffix("."), member)

    @property
    def exported(self) -> Mapping[str, PreTrainedModel]:
        """The models that an export writes, by the prefix of their parameters."""
        modules: Any = dict(self.named_children())
        return {prefix: modules[prefix.removesuffix(".")] for prefix in self._members}

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Returns float32 [M, N]: each member's score of a state, or its log odds that the step before it is right."""
        return torch.stack([_scores(member, inputs) for member in self.exported.values()])


def _scores(classifier: PreTrainedModel, inputs: ModelInputs) -> Tensor:
    hidden_BLD = classifier.base_model(**inputs.keywords).last_hidden_state
    scores: Tensor = classifier.get_submodule(HEAD)(inputs.predicting(hidden_BLD))
    return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]


def load_classifier(
    folder: str, scored_at: ScoredAt, *, head_seed: int, dtype: str, attention: str, trust_remote_code: bool
) -> PreTrainedModel:
    """Loads a classifier whose head computes in float32: one with its own head, or a language model with a new head.

    The weights of a new head are from N(0, 0.02), the same on every rank. Only a head for steps has a bias, of 0.

    Args:
        folder: the folder of such a classifier or of a language model, or its hub name.
        scored_at: which states are scored.
        head_seed: the seed of a new head.
        dtype: the type of the weights, as torch names it.
        attention: the name of the attention in transformers.
        trust_remote_code: let the model bring its own code.

    Raises:
        DataError: no such model, no safetensors, or a checkpoint that does not fit the model (see `load_whole`).
        ConfigError: a classifier with other labels, or a model whose head is not one linear layer over its states.
    """
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    model, is_new = _loaded(folder, scored_at, trust_remote_code=trust_remote_code, **settings)
    head: Any = model.get_submodule(HEAD)
    weight, bias = head.weight, head.bias
    if is_new:
        # Drawn whole, outside of ZeRO-3's context, which shards it later.
        random = torch.Generator().manual_seed(head_seed)
        labels, width = LABELS[scored_at], model.config.get_text_config().hidden_size
        weight = nn.Parameter((torch.randn(labels, width, generator=random) * HEAD_STD).to(settings["dtype"]))
        bias = None if bias is None else nn.Parameter(torch.zeros(labels, dtype=settings["dtype"]))
    model.score = FloatHead(weight, bias)
    if attention == SHARED_PREFIX and dtype == "bfloat16":
        keep_residual_in_float32(model)
    return model


def classifier_skeleton(folder: str, scored_at: ScoredAt, *, trust_remote_code: bool) -> PreTrainedModel:
    """Returns the classifier on the meta device: with the names and shapes of its weights, but without their values.

    Raises:
        DataError, ConfigError: as `load_classifier`.
    """
    return _loaded(folder, scored_at, trust_remote_code=trust_remote_code, device_map="meta")[0]


def _loaded(
    folder: str, scored_at: ScoredAt, *, trust_remote_code: bool, **settings: Any
) -> tuple[PreTrainedModel, bool]:
    """Returns transformers' classifier, and whether its head is random because the checkpoint has none."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    auto_class: Any = AutoModelForSequenceClassification if scored_at == "end" else AutoModelForTokenClassification
    suffix = "ForSequenceClassification" if scored_at == "end" else "ForTokenClassification"
    config = without_dropout(load_model_config(folder, trust_remote_code=trust_remote_code, key=KEY))
    is_new = not any(name.endswith(suffix) for name in config.architectures or [])
    if not is_new and config.num_labels != LABELS[scored_at]:
        raise ConfigError(
            f"{KEY}={folder}: the model has {config.num_labels} labels, and {LABELS[scored_at]} are trained; start "
            "from a language model, or from a classifier with that number of labels"
        )
    config.num_labels = LABELS[scored_at]
    model = load_whole(
        auto_class,
        folder,
        key=KEY,
        remedy="use a complete checkpoint of the model, with the config.json that was saved with it",
        may_lack={f"{HEAD}.weight", f"{HEAD}.bias"} if is_new else frozenset(),
        config=config,
        trust_remote_code=trust_remote_code,
        **settings,
    )
    if not has_linear_head(model):
        raise ConfigError(
            f"{KEY}={folder}: the head of {type(model).__name__} is not one linear layer `{HEAD}` over the states of a "
            "decoder; start from a decoder"
        )
    return model, is_new
