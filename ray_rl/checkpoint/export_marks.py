"""Reads and writes facts about an export: its step, the folders of its models, and the dtype of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray_rl.config.adapter_folder import STEP_FILE


def write_step(folder: Path, step: int, *, base: str | None = None) -> None:
    """Writes into an export the step of its policy, and for adapters alone the digest of the model's weights."""
    marks = {"step": step} | ({} if base is None else {"base": base})
    (folder / STEP_FILE).write_text(json.dumps(marks) + "\n", encoding="utf-8")


def exported_step(folder: Path) -> int | None:
    """Returns the step of an export's policy; None without an export, or if an older version wrote it."""
    try:
        content = json.loads((folder / STEP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return step if type(step) is int else None


def model_folders(export: Path, members: int) -> tuple[Path, ...]:
    """Returns the folders of the models in an export: the export itself, or one for each member of an ensemble."""
    return (export,) if members == 1 else tuple(export / f"member_{index}" for index in range(members))


def exported_models(export: Path) -> list[Path]:
    """Returns the folders of the models that are in an export."""
    return sorted(export.glob("member_*")) or [export]


def set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Sets the type under the name in use, `dtype` or the older `torch_dtype`, also in nested parts."""
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    for part in config.values():
        if isinstance(part, dict) and ("dtype" in part or "torch_dtype" in part):
            set_dtype(part, dtype)
