"""The critic's model: a backbone of its own, and a head that gives one number for each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ray_rl.errors import ConfigError
from ray_rl.models.loading import check_checkpoint, load_causal_lm, load_model_config
from ray_rl.models.policy import ModelInputs
from ray_rl.models.reward_model import HEAD, load_reward_model, reads_last_token

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class ValueHead(nn.Module):
    """Hidden states to values, in float32 whatever the dtype of the weights: bfloat16 would not tell values apart."""

    def __init__(self, weight: nn.Parameter) -> None:
        """Takes a weight [1, D], which may be a shard; the bias starts at 0."""
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(1, dtype=weight.dtype))

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

    With zeros the advantages are at first those of the rewards alone. Source of the second: InstructGPT,
    arXiv:2203.02155, section 3.5.

    Raises:
        DataError: no such model, no safetensors, or a checkpoint that leaves out weights.
        ConfigError: a reward model with several labels, or one that does not read the last token.
    """
    config = load_model_config(folder, trust_remote_code=trust_remote_code, key="critic.path")
    if _is_reward_model(config):
        model = load_reward_model(folder, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
        if not reads_last_token(model):
            raise ConfigError(f"critic.path={folder}: an encoder has no value for single tokens; name a decoder")
        model.requires_grad_(True)
        return ValueModel(model.base_model, ValueHead(model.get_submodule(HEAD).get_parameter("weight")))
    causal_lm = load_causal_lm(
        folder, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code, key="critic.path"
    )
    zeros = torch.zeros(1, config.get_text_config().hidden_size, dtype=getattr(torch, dtype))
    return ValueModel(causal_lm.base_model, ValueHead(nn.Parameter(zeros)))


def check_value_checkpoint(folder: str, *, trust_remote_code: bool) -> None:
    """Compares names and shapes in the checkpoint of a language model with the model's; reads no weights.

    That of a reward model is looked at when it is loaded.

    Raises:
        DataError: as `load_value_model`.
    """
    config = load_model_config(folder, trust_remote_code=trust_remote_code, key="critic.path")
    if not _is_reward_model(config):
        check_checkpoint(folder, trust_remote_code=trust_remote_code, key="critic.path")


def _is_reward_model(config: PretrainedConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
