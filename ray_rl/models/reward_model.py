"""Reward models: sequence classifiers with one label, and the position at which their score is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ray_rl.errors import ConfigError
from ray_rl.models.float_head import FloatHead
from ray_rl.models.loading import load_model_config, load_whole, without_dropout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEY = "rewards.paths"
"""The key of reward models in the configuration, for errors."""
HEAD = "score"
"""transformers' name for the head of decoder classifiers. It reads one position; encoders pool in other ways."""


def load_reward_model(folder: str, *, dtype: str, attention: str, trust_remote_code: bool) -> PreTrainedModel:
    """Loads a frozen model, every weight from its checkpoint, without dropout, gradients or key-value cache.

    Args:
        folder: the folder of the model, or its hub name. Only safetensors are read.
        dtype: the type of the weights and of the forward pass, as torch names it.
        attention: the name of the attention in transformers.
        trust_remote_code: let the model bring its own code.

    Raises:
        ConfigError: the model does not return one number, or is an encoder-decoder.
        DataError: there is no such model, or weights are missing from its checkpoint or have other shapes.
            transformers would initialise those at random and only log it; the scores would be meaningless.
    """
    from transformers import AutoModelForSequenceClassification

    model = load_whole(
        AutoModelForSequenceClassification,
        folder,
        key=KEY,
        remedy="use a model that was trained and saved as a sequence classifier with one label",
        config=_model_config(folder, trust_remote_code),
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
    )
    model.config.get_text_config().use_cache = False
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    return frozen


def has_linear_head(model: PreTrainedModel) -> bool:
    """Returns whether the head is one linear layer over any state, as in decoders; encoders pool in their own way."""
    return isinstance(dict(model.named_children()).get(HEAD), nn.Linear)


def sequence_scores(model: PreTrainedModel, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Returns the score of each sequence, in float32.

    Decoders are scored at the last position of the mask. transformers looks for the last token other than
    `pad_token_id` instead, which skips real tokens if padding and end of sequence are the same token, and refuses
    batches if there is no padding token. The head runs in float32: bfloat16 scores near 5 are 0.03 apart.

    Args:
        model: a model from `load_reward_model`.
        tokens_BL: int64 [B, L], padded on the right with any token of the vocabulary.
        mask_BL: int64 [B, L], 1 on tokens, at least one per row.

    Returns:
        float32 [B].
    """
    if not has_linear_head(model):
        scores_B: Tensor = model(input_ids=tokens_BL, attention_mask=mask_BL).logits[:, 0].float()
        return scores_B
    hidden_BLD = model.base_model(input_ids=tokens_BL, attention_mask=mask_BL).last_hidden_state
    rows_B = torch.arange(len(tokens_BL), device=tokens_BL.device)
    hidden_BD = hidden_BLD[rows_B, mask_BL.sum(1) - 1]
    head: Any = model.get_submodule(HEAD)
    scores_B1: Tensor = FloatHead(head.weight, head.bias)(hidden_BD)
    return scores_B1[:, 0]


def _model_config(folder: str, trust_remote_code: bool) -> PretrainedConfig:
    model_config = load_model_config(folder, trust_remote_code=trust_remote_code, key=KEY)
    if model_config.num_labels != 1:
        raise ConfigError(
            f"{KEY}={folder}: the model has {model_config.num_labels} labels, but a reward is one number; use a "
            "sequence classification model with num_labels 1"
        )
    if model_config.is_encoder_decoder:
        raise ConfigError(
            f"{KEY}={folder}: the model is an encoder-decoder ({model_config.model_type}), whose classifier finds its "
            "end token by value; use a decoder or an encoder"
        )
    return without_dropout(model_config)
