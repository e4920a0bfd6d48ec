"""Writes the policy of a run as a model folder: a copy of its export, or from a checkpoint, in any dtype."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ray_rl.checkpoint.best import kept_best
from ray_rl.checkpoint.export_marks import exported_models, exported_step, set_dtype
from ray_rl.checkpoint.new_folder import check_new, new_folder
from ray_rl.checkpoint.reading import checkpoint_steps
from ray_rl.checkpoint.store import disk_errors_explained
from ray_rl.config.adapter_folder import PEFT_CONFIG
from ray_rl.data.tokenizer import VOCABULARIES
from ray_rl.errors import UserError

Dtype = Literal["bfloat16", "float32"]


def export_run(run: Path, *, to: Path | None, dtype: Dtype | None = None, step: int | None = None) -> Path:
    """Makes a model folder from a run: a copy of `run/export`, or from the weights of a checkpoint.

    Needs neither a GPU nor Ray, and the run may be in progress.

    Args:
        run: a run folder.
        to: a path that does not exist, or an empty folder. None: `run/export_step_<N>`, or `run/export` itself.
        dtype: the type to which floating point weights are converted; None keeps the type of the run.
        step: the step of the policy; None for the newest, or for the best if the run keeps it.

    Returns:
        The model folder; `exported_step` returns its step.

    Raises:
        UserError: the run has no such step or no complete export, `to` is in use or inside the export, or torch is
            needed and missing.
        CheckpointError: the checkpoint does not verify, or the file system refuses.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; give the folder that the run left, for example runs/grpo-addition")
    source, steps = run / "export", checkpoint_steps(run / "checkpoints")
    has, lacks = exported_step(source), _lacks(source)
    newest = max(steps, default=None)
    best = None if newest is None else kept_best(run / "checkpoints" / f"step_{newest}")
    if step is None:
        newest = newest if best is None else best
        is_newest = has is None or newest is None or has >= newest
        if (not lacks and is_newest) or newest is None:
            return _copied(source, to, dtype)
        step = newest
    elif not lacks and has == step:
        return _copied(source, to, dtype)
    if step not in steps:
        known = sorted({*steps, *([has] if has is not None and not lacks else [])})
        there = f"there are steps {', '.join(map(str, known))}" if known else "the run has no checkpoint yet"
        raise UserError(f"--step {step}: {run} has no checkpoint of that step; {there}")
    target = run / f"export_step_{step}" if to is None else to
    check_new(target, outside=run / "checkpoints")
    try:
        from ray_rl.checkpoint.from_checkpoint import export_checkpoint
    except ModuleNotFoundError as error:
        raise UserError(
            f"making a model from a checkpoint needs the package {error.name}; pip install 'ray-rl[cpu]'"
        ) from None
    export_checkpoint(run, step, to=target, dtype=dtype)
    return target


def _copied(source: Path, to: Path | None, dtype: Dtype | None) -> Path:
    """Returns the folder `export` of a finished run, or a copy of it at `to`."""
    run, lacks = source.parent, _lacks(source)
    if not source.is_dir():
        raise UserError(
            f"{run}: the run has no export/ folder; it is written when a run ends, unless checkpoint.export=false"
        )
    if lacks:
        raise UserError(f"{source}: incomplete, {' and '.join(lacks)} missing; the run did not finish its export")
    if to is None and dtype is not None:
        raise UserError(f"--dtype {dtype}: {source} stays as it is; give a folder for the converted copy (--to DIR)")
    if to is None:
        return source
    for outside in (source, run / "checkpoints"):
        check_new(to, outside=outside)
    with disk_errors_explained(to), new_folder(to) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        if dtype is not None:
            for folder in exported_models(partial):
                _convert(folder, dtype)
    return to


def _lacks(source: Path) -> list[str]:
    """Lists the files that a model folder needs and this one lacks."""
    missing = []
    for folder in exported_models(source):
        if (folder / PEFT_CONFIG).is_file():
            continue  # adapters without their model, which were written as a whole
        missing += [] if (folder / "config.json").is_file() else ["config.json"]
        missing += [] if any(folder.glob("*.safetensors")) else ["*.safetensors"]
        missing += [] if any(next(folder.glob(name), None) for name in VOCABULARIES) else ["tokenizer.json"]
    return missing


def _convert(folder: Path, dtype: Dtype) -> None:
    """Rewrites the weights of a model folder, file by file, and their description in its JSON files."""
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
    if (folder / PEFT_CONFIG).is_file():
        return  # peft records no type
    _edit_json(folder / "config.json", lambda config: set_dtype(config, dtype))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _edit_json(index, lambda content: content.setdefault("metadata", {}).update(total_size=total))


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
