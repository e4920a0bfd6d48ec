"""Copies the exported policy out of a run folder, whole and checked, in another number format if asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ray_rl.errors import UserError

Dtype = Literal["bfloat16", "float32"]

STEP_FILE = "ray_rl.json"
"""File of an export that names the step whose policy it holds; loaders of models ignore it."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of them holds a vocabulary."""


def write_step(folder: Path, step: int) -> None:
    """Writes into an export which step's policy it holds."""
    (folder / STEP_FILE).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


def exported_step(folder: Path) -> int | None:
    """The step whose policy an export holds; None without an export, or in one of an older version, which is silent."""
    try:
        content = json.loads((folder / STEP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return step if type(step) is int else None


def export_run(run: Path, *, to: Path, dtype: Dtype | None = None) -> Path:
    """Copies `run/export` to the folder `to`, which appears only when it is complete.

    Args:
        run: a run folder.
        to: does not exist, or is an empty folder.
        dtype: converts floating point weights; None copies them as they are.

    Returns:
        `to`.

    Raises:
        UserError: the run has no complete export, `to` is not empty or inside the export, or a conversion is asked for
            without torch.
    """
    source = _checked_source(run)
    _check_target(to, source)
    partial = to.absolute().with_name(f".{to.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        if dtype is not None:
            _convert(partial, dtype)
        os.replace(partial, to.absolute())
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _checked_source(run: Path) -> Path:
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; give the folder that the run left, for example runs/grpo-addition")
    source = run / "export"
    if not source.is_dir():
        raise UserError(
            f"{run}: the run has no export/ folder; it is written when a run ends, unless checkpoint.export=false"
        )
    missing = [] if (source / "config.json").is_file() else ["config.json"]
    missing += [] if any(source.glob("*.safetensors")) else ["*.safetensors"]
    missing += [] if any((source / name).is_file() for name in _TOKENIZER_FILES) else ["tokenizer.json"]
    if missing:
        raise UserError(f"{source}: incomplete, {' and '.join(missing)} missing; the run did not finish its export")
    return source


def _check_target(to: Path, source: Path) -> None:
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {to}: is a file; give a folder that does not exist yet")
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"--to {to}: the folder is not empty, and nothing is overwritten; give another or remove it")
    if to.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--to {to}: is inside {source}; give a folder outside it")
    parent = next(parent for parent in to.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--to {to}: {parent} is not a folder that you may write to; give another")
    to.absolute().parent.mkdir(parents=True, exist_ok=True)


def _convert(folder: Path, dtype: Dtype) -> None:
    """Rewrites the weights of a model folder, file by file, and what its JSON files say of them."""
    try:
        import torch
        from safetensors.torch import load_file, save_file
    except ModuleNotFoundError as error:
        raise UserError(
            f"--dtype needs the package {error.name}; pip install 'ray-rl[cpu]', or leave --dtype out"
        ) from None
    target = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        converted = {name: t.to(target) if t.is_floating_point() else t for name, t in tensors.items()}
        save_file(converted, file, metadata={"format": "pt"})
        total += sum(t.numel() * t.element_size() for t in converted.values())
    _edit_json(folder / "config.json", lambda config: _set_dtype(config, dtype))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _edit_json(index, lambda content: content.setdefault("metadata", {}).update(total_size=total))


def _set_dtype(config: dict[str, Any], dtype: Dtype) -> None:
    """Sets the type under the name in use, `dtype` or the older `torch_dtype`, also in nested parts."""
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    for part in config.values():
        if isinstance(part, dict) and ("dtype" in part or "torch_dtype" in part):
            _set_dtype(part, dtype)


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
