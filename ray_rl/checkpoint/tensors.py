"""Writes tensors to a safetensors file, with the system's reason if that fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.checkpoint.store import disk_errors_explained

if TYPE_CHECKING:
    from torch import Tensor

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a new file; its folder is made if it is missing.

    Raises:
        CheckpointError: the file system refuses; the message says why and what to do.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            # "I/O error: No space left on device (os error 28)": an OSError in all but its type.
            found = _SYSTEM_ERROR.search(str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), str(error), str(path)) from error
