"""Writes a stream of weights as the safetensors files of a Hugging Face model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.checkpoint.tensors import save_tensors

if TYPE_CHECKING:
    from torch import Tensor

FILE_BYTES = 5 * 10**9
"""The most bytes of weights in one file, unless one weight is larger. All of a file is in memory at once."""


def write_weights(folder: Path, groups: Iterable[Mapping[str, Tensor]], *, file_bytes: int = FILE_BYTES) -> None:
    """Writes `model.safetensors`, or several numbered files and their index.

    Args:
        folder: an existing folder.
        groups: weights by name; each name occurs once.
        file_bytes: the most bytes of weights in one file.

    Raises:
        CheckpointError: the file system refuses.
    """
    from torch import contiguous_format

    held: dict[str, Tensor] = {}
    held_bytes, total = 0, 0
    files: list[list[str]] = []

    def flush() -> None:
        nonlocal held_bytes
        files.append(list(held))
        save_tensors(folder / _part(len(files)), held, {"format": "pt"})
        held.clear()
        held_bytes = 0

    for group in groups:
        for name, tensor in group.items():
            size = tensor.numel() * tensor.element_size()
            if held and held_bytes + size > file_bytes:
                flush()
            # safetensors would write the whole storage of a view.
            is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size
            held[name] = tensor if is_whole else tensor.clone(memory_format=contiguous_format)
            held_bytes += size
            total += size
    if held:
        flush()
    if len(files) == 1:
        (folder / _part(1)).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(files, 1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        (folder / _part(i)).rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _part(number: int) -> str:
    return f".part-{number:05d}.safetensors"
