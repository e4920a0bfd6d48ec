"""Writes folders of adapters as peft does: with peft itself, over the tiny Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

SETTINGS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
}


def peft_model(causal_lm: nn.Module, **settings: Any) -> Any:
    """Returns peft's own model over a causal language model, with adapters that change its results."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(causal_lm, LoraConfig(**{**SETTINGS, **settings}))  # type: ignore[arg-type]
    adapters = sorted((name, each) for name, each in model.named_parameters() if ".lora_" in name)
    with torch.no_grad():
        for index, (_, each) in enumerate(adapters):
            each.copy_((0.05 * torch.sin(0.37 * torch.arange(each.numel()) + index)).view(each.shape))
    return model


def write_adapters(folder: Path, causal_lm: nn.Module, *, base: str | None, **settings: Any) -> Path:
    """Writes a folder of adapters with peft; `base` is what it says about the model that they belong to."""
    peft_model(causal_lm, **settings).save_pretrained(folder)
    edit_settings(folder, base_model_name_or_path=base)
    return folder


def edit_settings(folder: Path, **settings: Any) -> None:
    """Changes settings in a folder of adapters."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
