"""Writes a model as a Hugging Face folder: its weights, and copies of all other files of the source model."""

from __future__ import annotations

import fnmatch
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ray_rl.catalog.weight_files import weights_digest
from ray_rl.checkpoint.classifier_settings import CLASSIFIERS, describe_classifier
from ray_rl.checkpoint.export_marks import model_folders, set_dtype, write_step
from ray_rl.checkpoint.new_folder import replaced_folder
from ray_rl.checkpoint.peft_folder import write_adapters
from ray_rl.checkpoint.weight_files import write_weights
from ray_rl.config.adapter import Lora
from ray_rl.config.adapter_folder import STEP_FILE
from ray_rl.data.tokenizer import copy_tokenizer
from ray_rl.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.npz"),
    "*.index.json",
)
"""Patterns of weights in any format, and of the indices of their files."""
OF_THE_SOURCE = ("config.json", "ray_rl.json", "README*", "trainer_state.json", "optimizer*", "scheduler*", "events.*")
"""Patterns of files that the export writes itself, and of files about the training of the source."""


def export_models(
    models: Mapping[str, PreTrainedModel],
    parameters: Iterable[tuple[str, torch.Tensor | None]],
    *,
    source: str,
    to: Path,
    step: int,
    chat_template: str | None = None,
    chat: bool = True,
) -> None:
    """Writes a model folder; a collective of the trainer's ranks. `to` appears only when it is complete.

    The weights are bit for bit those that were sent to the engines. Each model of an ensemble has a folder in `to` (see
    `model_folders`).

    Args:
        models: the models of the weights, by the prefix of the names of their parameters.
        parameters: names and whole tensors on the rank that writes; None on the others, which write nothing.
        source: folder or hub name of the model from which training started.
        to: the folder to write. An export in its place is replaced; any other folder in its place is renamed.
        step: the step of the policy, which the folder records (see `exported_step`).
        chat_template: the template with which the policy was trained, if it is not the tokenizer's own.
        chat: whether the texts of the training went through the template.

    Raises:
        CheckpointError, OSError, DataError: the file system refuses, or the source no longer exists.
    """
    # Gather all weights before writing the first: the other ranks wait in the collective, and not for the disk.
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in parameters if tensor is not None}
    if not weights:
        return
    dtype = next(iter(weights.values())).dtype
    with replaced_folder(to, mark=STEP_FILE) as partial:
        for folder, (prefix, model) in zip(model_folders(partial, len(models)), models.items(), strict=True):
            folder.mkdir(exist_ok=True)
            own = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
            write_weights(folder, checkpoint_names(model, [own, kept_buffers(model)]))
            write_settings(folder, model, source=source, dtype=dtype, chat_template=chat_template, chat=chat)
        write_step(partial, step)


def export_adapters(
    parameters: Iterable[tuple[str, torch.Tensor | None]],
    lora: Lora,
    *,
    source: str,
    to: Path,
    step: int,
    chat_template: str | None = None,
) -> None:
    """Writes a folder of peft (see `write_adapters`) in the same way as `export_models` writes one of a model.

    Args:
        parameters: names of peft and whole tensors on the rank that writes; None on the others, which write nothing.
        lora: the settings of the adapters.
        source: folder or hub name of the model from which training started.
        to: the folder to write; see `export_models`.
        step: the step of the policy.
        chat_template: the template with which the policy was trained, if it is not the tokenizer's own.

    Raises:
        CheckpointError, OSError, DataError: as `export_models`.
    """
    adapters = {name: tensor.to("cpu", copy=True) for name, tensor in parameters if tensor is not None}
    if not adapters:
        return
    with replaced_folder(to, mark=STEP_FILE) as partial:
        write_adapters(partial, adapters, lora, source=source, chat_template=chat_template)
        write_step(partial, step, base=base_digest(source))


def base_digest(source: str) -> str | None:
    """Returns the digest of the model to which exported adapters belong; None for one that is no folder."""
    folder = Path(source).expanduser()
    return weights_digest(folder) if folder.is_dir() else None


def check_export(source: str, *, chat_template: str | None = None) -> None:
    """Checks that an export will work: writes it, without weights, into a temporary folder.

    Raises:
        DataError: the source's settings or tokenizer cannot be read or copied, so the export after the last step would
            fail.
    """
    with tempfile.TemporaryDirectory(prefix="ray-rl-export-") as folder:
        to = Path(folder)
        _copy_companions(_source_folder(source), to, source)
        copy_tokenizer(source, to, chat_template=chat_template)
        _config_of(_source_folder(source), source)


def write_settings(
    to: Path, model: PreTrainedModel, *, source: str, dtype: torch.dtype, chat_template: str | None, chat: bool
) -> None:
    """Writes everything of a model folder except its weights.

    Files are byte for byte those of the source, including `generation_config.json`, which transformers may load but
    refuse to save. `config.json` is the source's with the architecture and dtype of the weights: that of transformers
    would have no dropout, and would look for the code of remote models on the hub. For a classifier, it and the
    tokenizer's settings also get labels and a padding token (see `describe_classifier`).

    Args:
        to: an existing folder.
        model: the model of the weights.
        source: folder or hub name of the model from which training started.
        dtype: the type of the weights.
        chat_template: the template with which the policy was trained, if it is not the tokenizer's own.
        chat: whether the texts of the training went through the template; a classifier records it.

    Raises:
        DataError: the source cannot be read.
        OSError: the file system refuses.
    """
    folder = _source_folder(source)
    _copy_companions(folder, to, source)
    copy_tokenizer(source, to, chat_template=chat_template)
    settings = _config_of(folder, source)
    if settings.get("model_type") != model.config.model_type:  # a part of the source's model was loaded
        settings = json.loads(model.config.to_json_string())
    settings["architectures"] = [type(model).__name__]
    if type(model).__name__.endswith(CLASSIFIERS):
        describe_classifier(settings, to, model, chat=chat)
    set_dtype(settings, str(dtype).removeprefix("torch."))
    (to / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def checkpoint_names(
    model: PreTrainedModel, groups: Iterable[Mapping[str, torch.Tensor]]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the weights with the names and shapes that checkpoints of the model have.

    They differ from those of its modules if transformers joins matrices, for example those of experts.

    Args:
        model: the model as transformers loaded it.
        groups: weights by name; joined weights are in one group.
    """
    from transformers.core_model_loading import revert_weight_conversion

    for group in groups:
        if group:
            yield revert_weight_conversion(model, dict(group))


def kept_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns the buffers that checkpoints of the model hold: they are not trained, but the model needs them."""
    names = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    return {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers() if name in names}


def _source_folder(source: str) -> Path:
    """Returns the folder itself, or for a hub name its snapshot without weights."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, ignore_patterns=[*WEIGHTS, "*/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"model.path={source}: its settings and tokenizer, which an export needs, are neither a folder nor on the "
            f"hub nor in its cache ({error}); restore the model"
        ) from error


def _config_of(folder: Path, source: str) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={source}: config.json cannot be read ({error}); correct the file") from error
    if not isinstance(settings, dict):
        raise DataError(f"model.path={source}: config.json is not a JSON object; correct the file")
    return settings


def _copy_companions(folder: Path, to: Path, source: str) -> None:
    """Copies every file except the weights: settings of generation and of processors, code, licences."""
    for file in sorted(folder.iterdir()):
        is_left_out = file.name.startswith(".") or any(
            fnmatch.fnmatch(file.name, pattern) for pattern in (*WEIGHTS, *OF_THE_SOURCE)
        )
        if is_left_out or not file.is_file():
            continue
        try:
            shutil.copyfile(file, to / file.name)
        except PermissionError as error:
            raise DataError(
                f"model.path={source}: {file.name} cannot be read ({error.strerror}), and the exported model would "
                "lack it; make it readable, or remove it"
            ) from error
