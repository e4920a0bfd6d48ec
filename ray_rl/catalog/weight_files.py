"""Checks from their headers alone that the safetensors files of a model folder are complete. Loads without torch.

Format: 8 bytes, little-endian, the length of a JSON header; the header; the data. `data_offsets` of each tensor are
relative to the end of the header (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LENGTH_BYTES = 8
HEADER_BYTES = 100 * 2**20
"""The largest header that the format allows."""
INDEX = "model.safetensors.index.json"
SAMPLE_BYTES = 1024
"""How many bytes a digest reads at the start, in the middle and at the end of each tensor."""
COVERED = f"names, types, shapes and sizes of all tensors, and {SAMPLE_BYTES} bytes at three places of each"
"""What `weights_digest` covers, for messages."""


def weight_file_problems(folder: Path) -> Iterator[str]:
    """Yields one message for each damaged or missing safetensors file in a folder; ignores other formats."""
    index = folder / INDEX
    files = {path.name for path in folder.glob("*.safetensors")}
    if index.is_file():
        settings = _json(index.read_bytes())
        if not isinstance(settings, dict) or not isinstance(settings.get("weight_map"), dict):
            yield f"{INDEX} is not a JSON object with a weight_map"
            return
        missing = sorted(set(settings["weight_map"].values()) - files)
        if missing:
            yield f"{INDEX} names {', '.join(missing[:3])}{' and others' if missing[3:] else ''}, not in the folder"
    for name in sorted(files):
        problem = _problem(folder / name)
        if problem is not None:
            yield f"{name} {problem}"


def weights_digest(folder: Path) -> str | None:
    """Returns a digest of the weights in a folder from a sample of their bytes: see COVERED.

    Training changes bytes in nearly every tensor and so changes the digest. A change of a single number may not.

    Returns:
        `blake2b-sampled:...`; None if there are no safetensors files, or one is incomplete.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files or any(True for _ in weight_file_problems(folder)):
        return None
    hashed = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            text = file.read(length)
            hashed.update(f"{path.name}:{path.stat().st_size}:".encode() + text)
            header = _json(text)
            spans = sorted(header[name]["data_offsets"] for name in header if name != "__metadata__")
            for start, end in spans:
                for at in (start, (start + end) // 2, max(start, end - SAMPLE_BYTES)):
                    file.seek(LENGTH_BYTES + length + at)
                    hashed.update(file.read(min(SAMPLE_BYTES, end - at)))
    return f"blake2b-sampled:{hashed.hexdigest()}"


def linear_layers(folder: Path) -> tuple[str, ...]:
    """Returns the last names of the matrices inside decoder layers, such as "q_proj", from the headers of a folder.

    Embeddings and the head are outside. An empty result means that the folder has no whole safetensors files.
    """
    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        if _problem(path) is not None:
            continue
        for name, shape in tensor_shapes(path).items():
            *parents, layer, kind = name.split(".") if name.count(".") else ("", name)
            is_matrix = kind == "weight" and len(shape) == 2
            if is_matrix and any(part.isdigit() for part in parents):
                found.add(layer)
    return tuple(sorted(found))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor of a whole safetensors file, by name."""
    with path.open("rb") as file:
        header = _json(file.read(int.from_bytes(file.read(LENGTH_BYTES), "little")))
    return {name: tuple(tensor.get("shape", ())) for name, tensor in header.items() if name != "__metadata__"}


def _problem(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or not 0 < length <= min(HEADER_BYTES, size - LENGTH_BYTES):
            return f"has {size} bytes and no header of safetensors"
        header = _json(file.read(length))
    if not isinstance(header, dict):
        return "has a header that is not a JSON object"
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    try:
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (KeyError, IndexError, TypeError, ValueError):
        return "has a header without the offsets of its tensors"
    wanted = LENGTH_BYTES + length + end
    return None if size == wanted else f"has {size} bytes, and its header describes {wanted}"


def _json(text: bytes) -> Any:
    """Returns the parsed text; None if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None
