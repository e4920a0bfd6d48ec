"""The policy as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ray_rl.checkpoint.export_folder import write_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def export_policy(
    model: PreTrainedModel, parameters: Iterable[tuple[str, torch.Tensor | None]], *, source: str, to: Path, step: int
) -> None:
    """Writes safetensors, configuration and tokenizer; a collective of the trainer's ranks.

    The weights are those that the engines were sent, bit for bit. `to` appears only when it is whole.

    Args:
        model: whose configuration is written.
        parameters: names and whole tensors on the rank that writes; None on the others, which write nothing.
        source: folder or hub name that training started from; its tokenizer is copied.
        to: the folder; one that is there already is replaced.
        step: whose policy it is; the folder names it (see `exported_step`).
    """
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in parameters if tensor is not None}
    if not weights:
        return
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict=weights)
    _copy_tokenizer(source, partial)
    write_step(partial, step)
    if to.exists():  # of a run that had ended, and went on
        shutil.rmtree(to)
    partial.rename(to)


def _copy_tokenizer(source: str, to: Path) -> None:
    folder = Path(source)
    if folder.is_dir():
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, to / name)
        return
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source).save_pretrained(to)
