"""Writes adapters as a folder of peft: small, and loaded together with the model that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ray_rl.checkpoint.tensors import save_tensors
from ray_rl.config.adapter import Lora
from ray_rl.config.adapter_folder import PEFT_CONFIG, WEIGHTS_FILE
from ray_rl.data.tokenizer import copy_tokenizer
from ray_rl.models.adapter import peft_config


def write_adapters(
    to: Path, adapters: Mapping[str, Tensor], lora: Lora, *, source: str, chat_template: str | None
) -> None:
    """Writes weights, settings and the tokenizer, so that peft, transformers and vLLM load the folder.

    Args:
        to: an existing folder.
        adapters: the weights by their names in peft.
        lora: the settings of the adapters.
        source: folder or hub name of the model that they belong to.
        chat_template: the template with which the policy was trained, if it is not the tokenizer's own.

    Raises:
        CheckpointError, OSError: the file system refuses.
        DataError: the tokenizer of the source cannot be read.
    """
    targets = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapters})
    save_tensors(to / WEIGHTS_FILE, {name: tensor.contiguous() for name, tensor in adapters.items()}, {"format": "pt"})
    settings = peft_config(lora, targets).to_dict() | {
        "base_model_name_or_path": source,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    (to / PEFT_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy_tokenizer(source, to, chat_template=chat_template)
