"""Freezes the parameters that are not trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ray_rl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def freeze(causal_lm: PreTrainedModel, *, layers: int) -> None:
    """Freezes the embeddings and the first `layers` decoder layers; 0 freezes nothing.

    A head that is tied to the embeddings is frozen with them.

    Raises:
        ConfigError: all decoder layers would be frozen, or the model's decoder layers cannot be identified.
    """
    if not layers:
        return
    found = dict(causal_lm.base_model.named_children()).get("layers")
    if not isinstance(found, nn.ModuleList):
        raise ConfigError(
            f"train.frozen_layers={layers}: {type(causal_lm).__name__} does not keep its decoder layers in one list "
            "`layers`, so its first layers cannot be identified; set train.frozen_layers=0"
        )
    if layers >= len(found):
        raise ConfigError(
            f"train.frozen_layers={layers}: the model has {len(found)} decoder layers and must train at least one; "
            f"set train.frozen_layers to {len(found) - 1} or less"
        )
    for module in (causal_lm.get_input_embeddings(), *found[:layers]):
        module.requires_grad_(False)
