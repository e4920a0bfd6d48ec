"""Loading a causal language model for training or scoring."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from ray_rl.config import RunConfig
from ray_rl.config.train import Trained
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


def shares_prefixes(config: RunConfig, role: Trained, model_config: PretrainedConfig) -> bool:
    """Whether a role computes each prompt once for all its completions (`packing`).

    Raises:
        ConfigError: asked for with a model whose attention the shared layout cannot express.
    """
    obstacle = _obstacle_to_sharing(model_config)
    match role.packing:
        case "shared_prefix" if obstacle:
            raise ConfigError(f"packing=shared_prefix: the model has {obstacle}; set packing=padded")
        case "auto":
            return config.cluster.accelerator == "cpu" and obstacle is None
        case packing:
            return packing == "shared_prefix"


def _obstacle_to_sharing(model_config: PretrainedConfig) -> str | None:
    """What keeps a model from sharing prefixes: its layers would see the row and not the tree."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    settings = model_config.to_dict()
    layers = settings.get("layer_types")
    is_windowed = settings.get("sliding_window") is not None if layers is None else set(layers) != {"full_attention"}
    if is_windowed:
        return "layers that are not full attention"
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    # transformers' word for models whose attention is replaced by AttentionInterface; others ignore it.
    if model_class is None or not model_class._supports_attention_backend:
        return "an attention of its own, which transformers cannot replace"
    return None


def attention_name(config: RunConfig, role: Trained, *, shared_prefix: bool) -> str:
    """The attention that transformers should use."""
    if shared_prefix:
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

    Raises:
        DataError: no such model, or no safetensors.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model_config = without_dropout(load_model_config(folder, trust_remote_code=trust_remote_code))
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=model_config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={folder}: cannot be loaded ({error})") from error


def without_dropout(model_config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with every dropout at 0: the policy that samples drops nothing.

    In transformers their names end in "dropout" (attention_dropout) or "pdrop" (resid_pdrop).
    """
    for name, value in model_config.to_dict().items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(model_config, name, 0.0)
    return model_config
