"""The policy as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ray_rl.checkpoint.export_folder import write_step
from ray_rl.data.tokenizer import copy_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_policy(
    model: PreTrainedModel,
    parameters: Iterable[tuple[str, torch.Tensor | None]],
    *,
    source: str,
    to: Path,
    step: int,
    chat_template: str | None = None,
) -> None:
    """Writes safetensors, configuration and tokenizer; a collective of the trainer's ranks.

    The weights are those that the engines were sent, bit for bit. `to` appears only when it is whole.

    Args:
        model: whose configuration is written.
        parameters: names and whole tensors on the rank that writes; None on the others, which write nothing.
        source: folder or hub name that training started from; its tokenizer is copied.
        to: the folder; one that is there already is replaced.
        step: whose policy it is; the folder names it (see `exported_step`).
        chat_template: with which the policy was trained, where it is not the tokenizer's own.
    """
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in parameters if tensor is not None}
    if not weights:
        return
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict=weights)
    copy_tokenizer(source, partial, chat_template=chat_template)
    write_step(partial, step)
    replaced = to.with_name(f".{to.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if to.exists():  # the run had ended, and was extended; a kill must not leave half of its export under this name
        to.rename(replaced)
    partial.rename(to)
    shutil.rmtree(replaced, ignore_errors=True)
