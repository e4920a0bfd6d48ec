"""Loading a causal language model for training or scoring."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import ModuleList

from ray_rl.config.train import Packing, Trained
from ray_rl.errors import ConfigError, DataError
from ray_rl.imports import quick_imports
from ray_rl.models.attention import SHARED_PREFIX, register_shared_prefix
from ray_rl.models.residual import keep_residual_in_float32

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LISTED_KEYS = 4
"""The most names of weights that an error lists."""


def load_model_config(folder: str, *, trust_remote_code: bool, key: str = "model.path") -> PretrainedConfig:
    """Returns the model's own configuration.

    Args:
        folder: the folder of the model, or its hub name.
        trust_remote_code: let the model bring its own code.
        key: the key of the run's configuration, for messages.

    Raises:
        DataError: there is no such model, or it is not one that `transformers` knows.
    """
    with quick_imports():
        from transformers import AutoConfig

    place = os.path.expanduser(folder)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise DataError(f"{key}={folder}: cannot be loaded ({error}); give a folder or a hub name") from error
    return config


def resolved_packing(role: Trained, model_config: PretrainedConfig, *, accelerator: str) -> Packing:
    """Returns how a role lays out its micro-batches (`packing`); `accelerator` is cpu or gpu.

    Raises:
        ConfigError: the model's attention cannot express the layout that is asked for.
    """
    own_attention, windows = _own_attention(model_config), _windows(model_config)
    obstacle = own_attention or (windows if role.packing in ("auto", "shared_prefix") else None)
    if role.packing == "auto":
        if accelerator == "cpu":
            return "padded" if obstacle else "shared_prefix"
        is_flash = attention_name(role, packing="packed", accelerator=accelerator) == "flash_attention_2"
        return "packed" if is_flash and not own_attention else "padded"
    if role.packing != "padded" and obstacle:
        raise ConfigError(f"packing={role.packing}: the model has {obstacle}; set packing=padded")
    return role.packing


def _windows(model_config: PretrainedConfig) -> str | None:
    """Returns why a model cannot share prefixes, or None: a window counts tokens of the row, not of the tree."""
    settings = model_config.to_dict()
    layers = settings.get("layer_types")
    is_windowed = settings.get("sliding_window") is not None if layers is None else set(layers) != {"full_attention"}
    return "layers that are not full attention" if is_windowed else None


def _own_attention(model_config: PretrainedConfig) -> str | None:
    """Returns why a row cannot hold several sequences, or None: the layers would see the whole row as one sequence."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    # transformers' flag of models whose attention AttentionInterface can replace; others ignore the setting.
    if model_class is None or not model_class._supports_attention_backend:
        return "an attention of its own, which transformers cannot replace"
    return None


def attention_name(role: Trained, *, packing: Packing, accelerator: str) -> str:
    """Returns the name of the attention that transformers should use; `accelerator` is cpu or gpu."""
    if packing == "shared_prefix":
        return SHARED_PREFIX
    if role.attention != "auto":
        return role.attention
    is_flash_usable = accelerator == "gpu" and find_spec("flash_attn") is not None
    return "flash_attention_2" if is_flash_usable else "sdpa"


def load_causal_lm(
    folder: str,
    *,
    dtype: str,
    attention: str,
    trust_remote_code: bool,
    key: str = "model.path",
) -> PreTrainedModel:
    """Loads a model in `dtype` without dropout, every weight from its checkpoint. Reads only safetensors.

    With shared prefixes its residual stream is float32 for any dtype.

    Args:
        folder: the folder of the model, or its hub name.
        dtype: the type of the weights and of the forward pass, as torch names it.
        attention: the name of the attention in transformers.
        trust_remote_code: let the model bring its own code.
        key: the key of the run's configuration, for messages.

    Raises:
        DataError: no such model, no safetensors, or a checkpoint that does not fit the model (see `load_whole`).
    """
    model_config = without_dropout(load_model_config(folder, trust_remote_code=trust_remote_code, key=key))
    settings = {"config": model_config, "dtype": getattr(torch, dtype), "attn_implementation": attention}
    model = _from_checkpoint(folder, trust_remote_code=trust_remote_code, key=key, **settings)
    _require_tied(folder, model, key=key)
    if attention == SHARED_PREFIX and dtype == "bfloat16":
        keep_residual_in_float32(model)
    return model


def check_checkpoint(folder: str, *, trust_remote_code: bool, key: str) -> None:
    """Compares names and shapes in a checkpoint with those of its model. Reads no weights and takes milliseconds.

    Loading under ZeRO-3 does not report weights that have another shape or that the model does not use.

    Args:
        folder: the folder of the model, or its hub name.
        trust_remote_code: let the model bring its own code.
        key: the key of the run's configuration, for messages.

    Raises:
        DataError: as `load_causal_lm`.
    """
    checkpoint_skeleton(folder, trust_remote_code=trust_remote_code, key=key)


def checkpoint_skeleton(folder: str, *, trust_remote_code: bool, key: str = "model.path") -> PreTrainedModel:
    """Returns the model on the meta device: with the names and shapes of its weights, but without their values.

    Raises:
        DataError: as `load_causal_lm`.
    """
    return _from_checkpoint(folder, trust_remote_code=trust_remote_code, key=key, device_map="meta")


def _from_checkpoint(folder: str, *, trust_remote_code: bool, key: str, **settings: Any) -> PreTrainedModel:
    with quick_imports():
        from transformers import AutoModelForCausalLM

    config = settings.pop("config", None) or load_model_config(folder, trust_remote_code=trust_remote_code, key=key)
    remedy = "use a complete checkpoint of the model, with the config.json that was saved with it"
    settings |= {"config": config, "trust_remote_code": trust_remote_code}
    return load_whole(AutoModelForCausalLM, folder, key=key, remedy=remedy, **settings)


def load_whole(
    auto_class: Any,
    folder: str,
    *,
    key: str,
    remedy: str,
    may_lack: Collection[str] = frozenset(),
    **settings: Any,
) -> PreTrainedModel:
    """Loads a model from safetensors, without the output of transformers, every weight from its checkpoint.

    Args:
        auto_class: transformers' class with `from_pretrained`.
        folder: the folder of the model, or its hub name.
        key: the key of the run's configuration, for messages.
        remedy: what the user should do about a checkpoint that does not fit the model, for messages.
        may_lack: names of weights that need not be in the checkpoint.
        settings: further keywords of `from_pretrained`, with the model's `config`.

    Raises:
        DataError: no safetensors, quantised weights, or a checkpoint that does not fit the model: see `_require_whole`.
    """
    from safetensors import SafetensorError

    _refuse_quantized(folder, settings["config"], key=key)
    register_shared_prefix()
    try:
        with _quiet_loading():
            loaded: Any = auto_class.from_pretrained(
                os.path.expanduser(folder),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, with what is missing
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError) as error:
        raise DataError(f"{key}={folder}: cannot be loaded ({error})") from error
    except SafetensorError as error:
        raise DataError(
            f"{key}={folder}: a safetensors file{_damaged_file(folder)} is damaged or cut off ({error}); download or "
            "copy it again, and check that Git LFS fetched it"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    report["missing_keys"] -= set(may_lack)
    _require_whole(folder, report, model, key=key, remedy=remedy)
    return model


def _refuse_quantized(folder: str, model_config: PretrainedConfig, *, key: str) -> None:
    """Refuses a checkpoint of quantised weights: they can be neither trained nor sent to engines."""
    settings = {**model_config.to_dict(), **model_config.get_text_config().to_dict()}
    quantization = settings.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "an unknown method") if isinstance(quantization, Mapping) else "one"
        raise DataError(
            f"{key}={folder}: its weights are quantised (quantization_config in config.json: {method}), and ray_rl "
            "trains and compares models in bfloat16 or float32; use the model's checkpoint in bfloat16"
        )


def _require_tied(folder: str, model: PreTrainedModel, *, key: str) -> None:
    """Refuses a checkpoint with a separate head if config.json says that the head is the embedding.

    transformers would use the head, and the engine the embedding.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or head is None:
        return
    if head.weight is not embedding.weight:
        raise DataError(
            f"{key}={folder}: config.json has tie_word_embeddings: true, but the head in the checkpoint differs from "
            "its embedding; set tie_word_embeddings: false there, or use a checkpoint without the head"
        )


def _damaged_file(folder: str) -> str:
    """Returns the name and size of the first file that cannot be opened."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(folder).expanduser().glob("*.safetensors")):
        try:
            safe_open(file, framework="pt")
        except (SafetensorError, OSError):
            return f" ({file.name}, {file.stat().st_size:,} bytes)"
    return ""


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hides transformers' progress bar and its table of missing weights; our errors say the same."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _require_whole(
    folder: str, report: Mapping[str, set[Any]], model: PreTrainedModel, *, key: str, remedy: str
) -> None:
    """Refuses a checkpoint that lacks weights of the model; transformers would initialise them and only log it.

    A tied weight is not missing if the checkpoint has its twin. Weights of parts that the model does not have (image
    encoders, other heads, prediction of tokens further ahead) may be left over; weights of its own parts may not.

    Args:
        folder: the folder of the model, or its hub name.
        report: the loading info of transformers' `from_pretrained`.
        model: the loaded model.
        key: the key of the run's configuration, for messages.
        remedy: what the user should do, for messages.

    Raises:
        DataError: weights are missing, have another shape, or are left over; the message names the first ones.
    """
    missing, left_over = report["missing_keys"], report["unexpected_keys"]
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    reasons = []
    if missing:
        reasons.append(f"has no {_listed(missing)}")
    if mismatched:
        reasons.append(f"has other shapes for {_listed(mismatched)}")
    if reasons:
        others = f", and {_listed(left_over)} instead" if left_over else ""
        raise DataError(
            f"{key}: the checkpoint of {folder} {' and '.join(reasons)}{others}: these would be random; {remedy}"
        )
    lost = {name for name in left_over if _is_of_a_part(name, model)}
    if lost:
        raise DataError(
            f"{key}: the checkpoint of {folder} has {_listed(lost)}, which the model that config.json describes leaves "
            f"out; {remedy}"
        )


def _is_of_a_part(name: str, model: PreTrainedModel) -> bool:
    """Returns whether a weight belongs to a part that the model has: a layer, a list of layers, a head."""
    if name.endswith("inv_freq"):  # a constant in older checkpoints
        return False
    modules = {path for path, _ in model.named_modules()}
    outermost = {"", *(path for path, module in model.named_modules() if module is model.base_model)}
    ahead = model.config.get_text_config().to_dict().get("num_nextn_predict_layers") or 0
    for prefix in ("", f"{model.base_model_prefix}."):
        parts = f"{prefix}{name}".split(".")
        ancestors = [".".join(parts[:end]) for end in range(len(parts), -1, -1)]
        closest = next(path for path in ancestors if path in modules)
        if closest not in outermost:
            below = parts[closest.count(".") + 1]
            layers = model.get_submodule(closest)
            # Layers after the last one, which predict tokens further ahead.
            is_ahead = isinstance(layers, ModuleList) and below.isdigit() and int(below) < len(layers) + ahead
            return not is_ahead
    return False


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    more = len(shown) - LISTED_KEYS
    return ", ".join(shown[:LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")


def require_rows(largest: tuple[str, int], model_config: PretrainedConfig, *, folder: str, key: str) -> None:
    """Refuses a tokenizer that can produce tokens without an embedding in the model.

    Args:
        largest: the token with the largest id, and the id.
        model_config: the configuration of the model.
        folder: the folder of the model, or its hub name.
        key: the key of the run's configuration, for messages.

    Raises:
        DataError: the model has too few rows; the message names the token and both numbers.
    """
    rows = model_config.get_text_config().to_dict().get("vocab_size")
    token, token_id = largest
    if rows is not None and token_id >= rows:
        raise DataError(
            f"{key}={folder}: the tokenizer's token {token!r} has the id {token_id}, and the model has {rows} rows of "
            "embeddings (vocab_size), for smaller ids; use the tokenizer that belongs to the model, or resize the "
            "model's embeddings (resize_token_embeddings) and save it"
        )


def without_dropout(model_config: PretrainedConfig) -> PretrainedConfig:
    """Returns the configuration with every dropout set to 0, as in the engines that sample.

    In transformers their names end in "dropout" (attention_dropout) or "pdrop" (resid_pdrop).
    """
    for name, value in model_config.to_dict().items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(model_config, name, 0.0)
    return model_config
