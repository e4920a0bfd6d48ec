"""Loading a causal language model for training or scoring."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from ray_rl.config import RunConfig
from ray_rl.config.train import Packing, Trained
from ray_rl.errors import ConfigError, DataError
from ray_rl.models.attention import SHARED_PREFIX
from ray_rl.models.residual import keep_residual_in_float32

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Model settings that act between the head and the logits; `PolicyModel` applies the head alone."""


def load_model_config(folder: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """The model's own configuration.

    Raises:
        DataError: there is no such model, or it is not one that `transformers` knows.
        ConfigError: a model whose logits are not its head's output.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={folder}: cannot be loaded ({error}); give a folder or a hub name") from error
    settings = config.to_dict()
    for name in CHANGES_LOGITS:
        if settings.get(name) not in (None, 1.0):
            raise ConfigError(f"model.path={folder}: {name}={settings[name]} is not supported; choose another model")
    return config


def resolved_packing(config: RunConfig, role: Trained, model_config: PretrainedConfig) -> Packing:
    """How a role lays out its micro-batches (`packing`).

    Raises:
        ConfigError: the model's attention cannot express the layout that is asked for.
    """
    own_attention, windows = _own_attention(model_config), _windows(model_config)
    obstacle = own_attention or (windows if role.packing in ("auto", "shared_prefix") else None)
    if role.packing == "auto":
        if config.cluster.accelerator == "cpu":
            return "padded" if obstacle else "shared_prefix"
        is_flash = attention_name(config, role, packing="packed") == "flash_attention_2"
        return "packed" if is_flash and not own_attention else "padded"
    if role.packing != "padded" and obstacle:
        raise ConfigError(f"packing={role.packing}: the model has {obstacle}; set packing=padded")
    return role.packing


def _windows(model_config: PretrainedConfig) -> str | None:
    """What keeps a model from sharing prefixes: a window is counted along the row and not along the tree."""
    settings = model_config.to_dict()
    layers = settings.get("layer_types")
    is_windowed = settings.get("sliding_window") is not None if layers is None else set(layers) != {"full_attention"}
    return "layers that are not full attention" if is_windowed else None


def _own_attention(model_config: PretrainedConfig) -> str | None:
    """What keeps a model from several sequences in a row: its layers would see the row and not the sequence."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    # transformers' word for models whose attention is replaced by AttentionInterface; others ignore it.
    if model_class is None or not model_class._supports_attention_backend:
        return "an attention of its own, which transformers cannot replace"
    return None


def attention_name(config: RunConfig, role: Trained, *, packing: Packing) -> str:
    """The attention that transformers should use."""
    if packing == "shared_prefix":
        return SHARED_PREFIX
    if role.attention != "auto":
        return role.attention
    is_flash_usable = config.cluster.accelerator == "gpu" and find_spec("flash_attn") is not None
    return "flash_attention_2" if is_flash_usable else "sdpa"


def load_causal_lm(
    folder: str,
    *,
    dtype: str,
    attention: str,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """The model with its weights in `dtype`, and without dropout; only safetensors are read.

    With shared prefixes its residual stream is float32 whatever the dtype.

    Raises:
        DataError: no such model, or no safetensors.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model_config = without_dropout(load_model_config(folder, trust_remote_code=trust_remote_code))
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=model_config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={folder}: cannot be loaded ({error})") from error
    if attention == SHARED_PREFIX and dtype == "bfloat16":
        keep_residual_in_float32(model)
    return model


def without_dropout(model_config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with every dropout at 0: the policy that samples drops nothing.

    In transformers their names end in "dropout" (attention_dropout) or "pdrop" (resid_pdrop).
    """
    for name, value in model_config.to_dict().items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(model_config, name, 0.0)
    return model_config
