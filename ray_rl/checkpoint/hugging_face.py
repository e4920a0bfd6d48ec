"""The policy as a Hugging Face folder: its weights are written, everything else is the source's own files."""

from __future__ import annotations

import fnmatch
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ray_rl.checkpoint.export_folder import STEP_FILE, set_dtype, write_step
from ray_rl.checkpoint.new_folder import replaced_folder
from ray_rl.checkpoint.weight_files import write_weights
from ray_rl.data.tokenizer import copy_tokenizer
from ray_rl.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.npz"),
    "*.index.json",
)
"""Patterns of weights in any format, and of what lists their files."""
OF_THE_SOURCE = ("config.json", "ray_rl.json", "README*", "trainer_state.json", "optimizer*", "scheduler*", "events.*")
"""Patterns of files that the export writes itself, and of files that tell how the source was made."""


def export_policy(
    model: PreTrainedModel,
    parameters: Iterable[tuple[str, torch.Tensor | None]],
    *,
    source: str,
    to: Path,
    step: int,
    chat_template: str | None = None,
) -> None:
    """Writes a model folder; a collective of the trainer's ranks. `to` appears only when it is whole.

    The weights are those that the engines were sent, bit for bit.

    Args:
        model: that they are of.
        parameters: names and whole tensors on the rank that writes; None on the others, which write nothing.
        source: folder or hub name that training started from.
        to: the folder to write. An export in its place is replaced; any other folder in its place is renamed.
        step: whose policy it is; the folder names it (see `exported_step`).
        chat_template: the template with which the policy was trained, where it is not the tokenizer's own.

    Raises:
        CheckpointError, OSError, DataError: the file system refuses, or the source is not there any more.
    """
    # All of them before the first is written: the other ranks wait in the collective, and must not for a disk.
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in parameters if tensor is not None}
    if not weights:
        return
    dtype = next(iter(weights.values())).dtype
    with replaced_folder(to, mark=STEP_FILE) as partial:
        write_weights(partial, checkpoint_names(model, [weights, kept_buffers(model)]))
        write_settings(partial, model, source=source, dtype=dtype, chat_template=chat_template)
        write_step(partial, step)


def check_export(source: str, *, chat_template: str | None = None) -> None:
    """Writes everything of an export but weights into a temporary folder.

    Raises:
        DataError: the source's settings or tokenizer cannot be read or copied, so that the export would fail after the
            last step.
    """
    with tempfile.TemporaryDirectory(prefix="ray-rl-export-") as folder:
        to = Path(folder)
        _copy_companions(_source_folder(source), to, source)
        copy_tokenizer(source, to, chat_template=chat_template)
        _config_of(_source_folder(source), source)


def write_settings(
    to: Path, model: PreTrainedModel, *, source: str, dtype: torch.dtype, chat_template: str | None
) -> None:
    """Writes everything of a model folder but its weights.

    Files are the source's, byte for byte; also `generation_config.json`, of which transformers refuses to save what it
    loads. `config.json` is the source's with the architecture and the dtype of the weights: transformers' own would
    have no dropout any more, and would look for the code of remote models on the hub.

    Args:
        to: exists.
        model: the model that the weights are of.
        source: folder or hub name that training started from.
        dtype: the type of the weights.
        chat_template: the template with which the policy was trained, where it is not the tokenizer's own.

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
    set_dtype(settings, str(dtype).removeprefix("torch."))
    (to / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def checkpoint_names(
    model: PreTrainedModel, groups: Iterable[Mapping[str, torch.Tensor]]
) -> Iterator[dict[str, torch.Tensor]]:
    """Weights under the names, and in the shapes, that checkpoints of the model have.

    They differ from those of its modules where transformers puts matrices together, as those of experts.

    Args:
        model: as transformers loaded it.
        groups: weights by name; what is put together is in one group.
    """
    from transformers.core_model_loading import revert_weight_conversion

    for group in groups:
        if group:
            yield revert_weight_conversion(model, dict(group))


def kept_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Buffers that checkpoints of the model hold: no optimizer changes them, and a model without them is another."""
    names = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    return {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers() if name in names}


def _source_folder(source: str) -> Path:
    """The folder itself, or of a hub name its snapshot without weights."""
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
            f"hub nor in its cache ({error}); put the model back where it was"
        ) from error


def _config_of(folder: Path, source: str) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={source}: config.json cannot be read ({error}); mend the file") from error
    if not isinstance(settings, dict):
        raise DataError(f"model.path={source}: config.json is no object; mend the file")
    return settings


def _copy_companions(folder: Path, to: Path, source: str) -> None:
    """Copies every file but the weights: settings of generation and of processors, code, licences."""
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
