"""Loading a causal language model for training or scoring."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError, DataError
from ray_rl.models.attention import SHARED_PREFIX

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


def shares_prefixes(config: RunConfig, model_config: PretrainedConfig) -> bool:
    """Whether the update computes each prompt once for all its completions (`train.packing`).

    Raises:
        ConfigError: asked for with a model that has sliding-window layers, which the shared layout cannot express.
    """
    has_windows = "sliding_attention" in (model_config.to_dict().get("layer_types") or [])
    match config.train.packing:
        case "shared_prefix" if has_windows:
            raise ConfigError(
                f"train.packing=shared_prefix: {config.model.path} has sliding-window layers; set train.packing=padded"
            )
        case "auto":
            return config.cluster.accelerator == "cpu" and not has_windows
        case packing:
            return packing == "shared_prefix"


def attention_name(config: RunConfig, *, shared_prefix: bool) -> str:
    """The attention that transformers should use."""
    if shared_prefix:
        return SHARED_PREFIX
    if config.train.attention != "auto":
        return config.train.attention
    is_flash_usable = config.cluster.accelerator == "gpu" and find_spec("flash_attn") is not None
    return "flash_attention_2" if is_flash_usable else "sdpa"


def load_causal_lm(
    folder: str,
    *,
    dtype: str,
    attention: str,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """The model with its weights in `dtype`; only safetensors are read.

    Raises:
        DataError: no such model, or no safetensors.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={folder}: cannot be loaded ({error})") from error
