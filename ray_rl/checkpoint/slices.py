"""Stores named vectors in slices: each process writes its own, and any number of processes can read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ray_rl.checkpoint.tensors import save_tensors
from ray_rl.errors import CheckpointError

Slice = tuple[str, int, Tensor]
"""Name of a vector, the first element of a slice of it, and the slice: flat, of any dtype."""

SUFFIX = ".safetensors"
STATE = "state"
"""Key of the safetensors metadata with our own state, as JSON."""


def write_slices(path: Path, slices: Iterable[Slice], state: Mapping[str, Any]) -> None:
    """Writes one process's slices, with a small state of JSON values.

    Args:
        path: the new safetensors file.
        slices: slices that overlap neither each other nor those in the files of other processes.
        state: the state of this process.

    Raises:
        CheckpointError: the file system refuses.
    """
    tensors = {f"{start}:{name}": values.detach().contiguous().cpu() for name, start, values in slices}
    save_tensors(path, tensors, {STATE: json.dumps(state)})


class SliceReader:
    """Reads any range of the vectors whose slices are in the files of a folder."""

    def __init__(self, folder: Path) -> None:
        """Reads only the headers of the files.

        Raises:
            CheckpointError: there are no such files, or they are not safetensors.
        """
        from safetensors import SafetensorError, safe_open

        self._folder = folder
        self._slices: dict[str, list[tuple[int, int, Any]]] = {}
        self.states: dict[str, dict[str, Any]] = {}
        """The state of each process, by the name of its file without suffix."""
        paths = sorted(folder.glob(f"*{SUFFIX}"))
        if not paths:
            raise CheckpointError(f"{folder}: holds no {SUFFIX} files; resume from another checkpoint")
        for path in paths:
            try:
                file = safe_open(path, "pt")
                self.states[path.stem] = json.loads(file.metadata()[STATE])
            except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
                raise CheckpointError(
                    f"{path}: damaged, or not written by a checkpoint of ray_rl: {error}; resume from "
                    "another checkpoint"
                ) from error
            for key in list(file.keys()):
                start, _, name = key.partition(":")
                values = file.get_slice(key)
                self._slices.setdefault(name, []).append((int(start), values.get_shape()[0], values))
        for found in self._slices.values():
            found.sort(key=lambda each: each[0])

    def __contains__(self, name: str) -> bool:
        """Returns whether the checkpoint holds any slice of a vector."""
        return name in self._slices

    @property
    def names(self) -> list[str]:
        """Names of the vectors of which the checkpoint holds a slice."""
        return list(self._slices)

    def size(self, name: str) -> int:
        """Returns the number of elements of a vector, up to the end of its last slice; 0 if it has no slice."""
        return max((first + size for first, size, _ in self._slices.get(name, ())), default=0)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Returns the elements [start, stop) of a vector.

        Raises:
            CheckpointError: some elements are missing.
        """
        parts: list[Tensor] = []
        at = start
        for first, size, values in self._slices.get(name, ()):
            if at < stop and first <= at < first + size:
                end = min(stop, first + size)
                parts.append(values[at - first : end - first])
                at = end
        if at < stop:
            raise CheckpointError(
                f"{self._folder}: elements {at} to {stop} of {name} are missing: it belongs to another model, or to a "
                "run whose ranks wrote to different folders; resume from another checkpoint"
            )
        return torch.cat(parts) if parts else torch.empty(0)
