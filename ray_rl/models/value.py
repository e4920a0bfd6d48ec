"""The critic's model: a backbone of its own, and a head that gives one number for each state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ray_rl.errors import ConfigError, DataError
from ray_rl.models.loading import load_causal_lm, load_model_config, without_dropout
from ray_rl.models.policy import ModelInputs

SCORE_HEAD = "score"
"""Name of the head in transformers' sequence classification models of decoders."""


class ValueHead(nn.Module):
    """hidden state -> value, in float32 whatever the dtype of the weights: values differ by less than bfloat16 shows.

    Starts at zero, so that at first the advantages are those of the rewards alone.
    """

    def __init__(self, size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """float32 [N]."""
        return nn.functional.linear(hidden_ND.float(), self.weight.float(), self.bias.float())[:, 0]


class ValueModel(nn.Module):
    """Values of the states before given tokens.

    A module of its own, so that DeepSpeed's hooks surround everything that touches parameters.
    """

    def __init__(self, backbone: Any, head: ValueHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: ModelInputs) -> Tensor:
        """float32 [N], the value of the state that each loss token was chosen in."""
        extra = {} if inputs.layout is None else {"layout": inputs.layout}
        hidden_BLD = self.backbone(
            input_ids=inputs.tokens_BL,
            position_ids=inputs.positions_BL,
            attention_mask=inputs.attention_mask_BL,
            use_cache=False,
            **extra,
        ).last_hidden_state
        values_N: Tensor = self.head(hidden_BLD.flatten(0, 1).index_select(0, inputs.predict_N))
        return values_N


def load_value_model(folder: str, *, dtype: str, attention: str, trust_remote_code: bool) -> ValueModel:
    """A critic with the weights of a language model and a head of zeros, or with those of a reward model and its head.

    Source of the second: InstructGPT, arXiv:2203.02155, section 3.5.

    Raises:
        DataError: no such model, or no safetensors.
        ConfigError: a reward model with several labels.
    """
    from transformers import AutoModelForSequenceClassification

    config = load_model_config(folder, trust_remote_code=trust_remote_code)
    size = config.get_text_config().hidden_size
    head = ValueHead(size, dtype=getattr(torch, dtype))
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        causal_lm = load_causal_lm(folder, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
        return ValueModel(causal_lm.base_model, head)
    if config.num_labels != 1:
        raise ConfigError(f"critic.path={folder}: the model has {config.num_labels} labels; give one with one label")
    try:
        reward_model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=without_dropout(config),
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"critic.path={folder}: cannot be loaded ({error})") from error
    _copy_head(reward_model.get_submodule(SCORE_HEAD), head)
    return ValueModel(reward_model.base_model, head)


def _copy_head(score: nn.Module, head: ValueHead) -> None:
    """The reward model's head; under ZeRO-3 it arrives as shards."""
    import deepspeed

    weight = score.get_parameter("weight")
    with deepspeed.zero.GatheredParameters([weight]), torch.no_grad():
        head.weight.copy_(weight)
