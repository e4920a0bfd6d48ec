"""Reads what a folder of peft says about its adapters: their model, size and place. Loads without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_rl.catalog.weight_files import tensor_shapes, weight_file_problems
from ray_rl.errors import DataError

PEFT_CONFIG = "adapter_config.json"
"""File of a folder of peft, which has adapters without their model."""
WEIGHTS_FILE = "adapter_model.safetensors"
STEP_FILE = "ray_rl.json"
"""File of an export that names the step whose policy it holds; loaders of models ignore it."""
TEMPLATE_FILE = "chat_template.jinja"
"""File with the chat template of a tokenizer."""

_UNDERSTOOD = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
}
"""Settings that are read, or that change nothing of a trained adapter."""
_OFF = (("bias", "none"), ("revision", "main"))
_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the weights of the model as they are."""
_PARTS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The facts about a folder of adapters."""

    base: str | None
    """Folder or hub name of the model that they belong to, if it says so."""
    base_digest: str | None
    """Digest of that model's weights, if the export of a run recorded it."""
    rank: int
    alpha: float
    rs_lora: bool
    targets: tuple[str, ...]
    """The last names of the layers that have adapters."""
    unsupported: tuple[str, ...]
    """Settings that a run cannot continue, as `name=value`."""


def has_adapters(path: str | Path) -> bool:
    """Returns whether a path is a folder of adapters without their model."""
    folder = Path(path).expanduser()
    return (folder / PEFT_CONFIG).is_file() and not (folder / "config.json").is_file()


def template_of(path: str | Path) -> str | None:
    """Returns the file of a folder with its tokenizer's chat template; None without one."""
    return str(Path(path) / TEMPLATE_FILE) if (Path(path).expanduser() / TEMPLATE_FILE).is_file() else None


def read_adapter_folder(path: str | Path) -> AdapterFolder:
    """Returns the facts about a folder of adapters; reads no weights.

    Raises:
        DataError: it is no such folder, is incomplete or damaged, or has adapters of another kind than LoRA. The
            message begins with the path.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{path}: there is no such folder; give one with {PEFT_CONFIG}, downloaded from the hub if need be"
        )
    settings = _json(folder / PEFT_CONFIG, path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise DataError(f"{path}: {PEFT_CONFIG} has peft_type={kind}, and only LORA can be continued")
    if not (folder / WEIGHTS_FILE).is_file():
        raise DataError(f"{path}: there is no {WEIGHTS_FILE}; save the adapters as safetensors")
    for problem in weight_file_problems(folder):
        raise DataError(f"{path}: {problem}; copy the folder again")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise DataError(f"{path}: {PEFT_CONFIG} has r={rank} and lora_alpha={alpha}; both must be positive numbers")
    names = tensor_shapes(folder / WEIGHTS_FILE)
    marks = _json(folder / STEP_FILE, path) if (folder / STEP_FILE).is_file() else {}
    return AdapterFolder(
        base=settings.get("base_model_name_or_path") or None,
        base_digest=marks.get("base"),
        rank=rank,
        alpha=float(alpha),
        rs_lora=bool(settings.get("use_rslora")),
        targets=tuple(
            sorted(
                {name.removesuffix(part).rpartition(".")[2] for name in names for part in _PARTS if name.endswith(part)}
            )
        ),
        unsupported=(*_unsupported(settings), *(f"tensor {name}" for name in _others(names))),
    )


def _unsupported(settings: dict[str, Any]) -> Iterator[str]:
    """Yields settings of adapters that are more than W + scale * B A in whole layers, all of one rank and scale."""
    for name, value in sorted(settings.items()):
        is_off = not value or (name, value) in _OFF
        is_known = name in _UNDERSTOOD or (name == "init_lora_weights" and value in _INITS)
        if not is_off and not is_known:
            yield f"{name}={json.dumps(value)}"


def _others(names: dict[str, tuple[int, ...]]) -> list[str]:
    """Returns the first tensor that is not A or B, if there is one."""
    return sorted(name for name in names if not name.endswith(_PARTS))[:1]


def _json(file: Path, path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no {file.name}; give a folder that peft has saved") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {file.name} cannot be read ({error}); correct it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: {file.name} is not a JSON object; correct it")
    return content
