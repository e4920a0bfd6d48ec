"""The critic's model: a separate backbone, and a head that returns one number for each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ray_rl.errors import ConfigError
from ray_rl.models.attention import SHARED_PREFIX
from ray_rl.models.float_head import FloatHead
from ray_rl.models.loading import check_checkpoint, load_causal_lm, load_model_config
from ray_rl.models.policy import ModelInputs
from ray_rl.models.residual import keep_residual_in_float32
from ray_rl.models.reward_model import HEAD, has_linear_head, load_reward_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class ValueModel(nn.Module):
    """A model that returns the values of the states before given tokens.

    It is a module, so that DeepSpeed's hooks run around everything that uses parameters.
    """

    def __init__(self, backbone: Any, head: FloatHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Returns float32 [N]: for each loss token, the value of the prompt and the tokens before it."""
        values_N1: Tensor = self.head(inputs.predicting(self.backbone(**inputs.keywords).last_hidden_state))
        return values_N1[:, 0]


def load_value_model(folder: str, *, dtype: str, attention: str, trust_remote_code: bool) -> ValueModel:
    """Loads a critic from a language model, with a head of zeros, or from a reward model with its head.

    With a head of zeros the first advantages depend on the rewards alone. Source of the start from a reward model:
    InstructGPT, arXiv:2203.02155, section 3.5.

    Raises:
        DataError: no such model, no safetensors, or a checkpoint without some of the weights.
        ConfigError: a reward model with several labels, or one that does not score at the last token.
    """
    config = load_model_config(folder, trust_remote_code=trust_remote_code, key="critic.path")
    if _is_reward_model(config):
        model = load_reward_model(folder, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
        if not has_linear_head(model):
            raise ConfigError(f"critic.path={folder}: an encoder has no values for single tokens; name a decoder")
        model.requires_grad_(True)
        if attention == SHARED_PREFIX and dtype == "bfloat16":
            keep_residual_in_float32(model)  # as `load_causal_lm` does
        return ValueModel(model.base_model, _head(model.get_submodule(HEAD).get_parameter("weight")))
    causal_lm = load_causal_lm(
        folder, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code, key="critic.path"
    )
    zeros = torch.zeros(1, config.get_text_config().hidden_size, dtype=getattr(torch, dtype))
    return ValueModel(causal_lm.base_model, _head(nn.Parameter(zeros)))


def check_value_checkpoint(folder: str, *, trust_remote_code: bool) -> None:
    """Compares names and shapes in the checkpoint of a language model with the model's. Reads no weights.

    The checkpoint of a reward model is checked when it is loaded.

    Raises:
        DataError: as `load_value_model`.
    """
    config = load_model_config(folder, trust_remote_code=trust_remote_code, key="critic.path")
    if not _is_reward_model(config):
        check_checkpoint(folder, trust_remote_code=trust_remote_code, key="critic.path")


def _head(weight: nn.Parameter) -> FloatHead:
    """Returns a head with a weight [1, D], which may be a shard; the bias starts at 0."""
    return FloatHead(weight, nn.Parameter(torch.zeros(1, dtype=weight.dtype)))


def _is_reward_model(config: PretrainedConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
