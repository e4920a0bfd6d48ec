"""Parameters that are not trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ray_rl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def freeze(causal_lm: PreTrainedModel, *, layers: int) -> None:
    """Takes the embeddings and the first `layers` decoder layers out of training; 0 takes out nothing.

    A head that is tied to the embeddings is frozen with them.

    Raises:
        ConfigError: no decoder layer would be left, or it is not clear what a decoder layer of the model is.
    """
    if not layers:
        return
    found = dict(causal_lm.base_model.named_children()).get("layers")
    if not isinstance(found, nn.ModuleList):
        raise ConfigError(
            f"train.frozen_layers={layers}: {type(causal_lm).__name__} does not keep its decoder layers in one list "
            "`layers`, so it is not known which are the first; set train.frozen_layers=0"
        )
    if layers >= len(found):
        raise ConfigError(
            f"train.frozen_layers={layers}: the model has {len(found)} decoder layers and one must be trained; "
            f"set train.frozen_layers to {len(found) - 1} or less"
        )
    for module in (causal_lm.get_input_embeddings(), *found[:layers]):
        module.requires_grad_(False)
