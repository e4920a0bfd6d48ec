"""Makes a model folder from a checkpoint: on CPU, without DeepSpeed and Ray, one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ray_rl.catalog.weight_files import weights_digest
from ray_rl.checkpoint.export_marks import model_folders, write_step
from ray_rl.checkpoint.hugging_face import base_digest, checkpoint_names, write_settings
from ray_rl.checkpoint.new_folder import new_folder
from ray_rl.checkpoint.peft_folder import write_adapters
from ray_rl.checkpoint.reading import checkpoint_steps, read_checkpoint
from ray_rl.checkpoint.slices import SliceReader
from ray_rl.checkpoint.store import disk_errors_explained, read_json
from ray_rl.checkpoint.weight_files import write_weights
from ray_rl.config.adapter import Lora
from ray_rl.config.loading.load import load_config
from ray_rl.config.roles import ACTOR
from ray_rl.config.run import ModelConfig
from ray_rl.data.chat import ChatTokenizer, uses_chat
from ray_rl.errors import CheckpointError
from ray_rl.metrics.run_folder import config_file
from ray_rl.models.adapter import PARTS, is_adapter, merge, peft_name
from ray_rl.models.classifier import classifier_skeleton, load_classifier, member_prefix
from ray_rl.models.loading import checkpoint_skeleton, load_causal_lm
from ray_rl.models.packaged import resolve_model
from ray_rl.models.policy import MASTER, WRAPPED
from ray_rl.models.quantised import round_weights
from ray_rl.types import LossAt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_checkpoint(run: Path, step: int, *, to: Path, dtype: str | None) -> None:
    """Writes the model of a step in Hugging Face format. Reads checkpoints of any ZeRO stage and number of workers.

    Without `dtype`, the weights equal those of the engines at that step bit for bit: they are the float32 master
    weights, converted to `model.dtype`. Frozen weights come from the model from which the run started.

    Args:
        run: a run folder with a checkpoint of this step.
        step: the step of the checkpoint.
        to: the new folder; see `new_folder`.
        dtype: the type of the weights; None for `model.dtype` of the run.

    Raises:
        UserError: the folder is not a run folder, or the model from which the run started no longer exists.
        CheckpointError: the checkpoint does not verify or belongs to another model, or the file system refuses.
    """
    config = load_config(config_file(run))
    source = _source_of(config.model.path, run)
    template = ChatTokenizer.of_policy(config.model, config.data, source).changed_template
    chat = uses_chat(config.data)
    checkpoint = _verified(run, step)
    reader = SliceReader(checkpoint / ACTOR)
    dtype = config.model.dtype if dtype is None else dtype
    adapter = config.model.adapter
    if adapter is not None:
        _require_same_source(checkpoint, source)
    if adapter is not None and config.exports_adapters:
        with disk_errors_explained(to), new_folder(to) as partial:
            adapters = _adapters(reader, adapter, dtype=getattr(torch, dtype))
            write_adapters(partial, adapters, adapter, source=source, chat_template=template)
            write_step(partial, step, base=base_digest(source))
        return
    loss_at = config.offline.loss_at if config.is_offline else "tokens"
    parts: list[tuple[PreTrainedModel, _Weights]] = []
    for member in range(config.members):
        kind = _Kind(loss_at, config.model, source, member)
        model, may_be_frozen = kind.skeleton(), config.train.frozen_layers > 0
        weights = _Weights(
            kind, model, reader, dtype=getattr(torch, dtype), may_be_frozen=may_be_frozen, adapter=adapter
        )
        if weights.has_frozen:
            _require_same_source(checkpoint, source)
        parts.append((model, weights))
    with disk_errors_explained(to), new_folder(to) as partial:
        for folder, (model, weights) in zip(model_folders(partial, config.members), parts, strict=True):
            folder.mkdir(exist_ok=True)
            write_weights(folder, checkpoint_names(model, weights.layers()))
            write_settings(folder, model, source=source, dtype=weights.dtype, chat_template=template, chat=chat)
        write_step(partial, step)


def _adapters(reader: SliceReader, adapter: Lora, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the adapters of a language model in a checkpoint, by their names in peft."""
    prefix = f"{MASTER}/{WRAPPED}"
    names = [name.removeprefix(prefix) for name in reader.names if name.startswith(prefix)]
    return {
        peft_name(name): _matrix(reader, f"{prefix}{name}", name, adapter).to(dtype)
        for name in names
        if is_adapter(name)
    }


def _matrix(reader: SliceReader, vector: str, name: str, adapter: Lora) -> Tensor:
    """Returns A [rank, inputs] or B [outputs, rank]."""
    flat = reader.read(vector, 0, reader.size(vector))
    return flat.view(adapter.rank, -1) if name.endswith(PARTS[0]) else flat.view(-1, adapter.rank)


def _verified(run: Path, step: int) -> Path:
    folder = run / "checkpoints"
    try:
        return read_checkpoint(folder, step).folder
    except CheckpointError as error:
        others = ", ".join(str(other) for other in checkpoint_steps(folder) if other != step)
        remedy = f"give another: --step {others}" if others else "there is no other checkpoint"
        raise CheckpointError(f"{error}; {remedy}") from error


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the model of a run is, a language model or a classifier, and the source from which it started."""

    loss_at: LossAt
    settings: ModelConfig
    source: str
    member: int
    """Its index in an ensemble."""

    def skeleton(self) -> PreTrainedModel:
        """Returns its modules, without weights."""
        trust = self.settings.trust_remote_code
        if self.loss_at == "tokens":
            return checkpoint_skeleton(self.source, trust_remote_code=trust)
        return classifier_skeleton(self.source, self.loss_at, trust_remote_code=trust)

    def load(self, attention: str) -> PreTrainedModel:
        """Loads the source."""
        dtype, trust = self.settings.dtype, self.settings.trust_remote_code
        if self.loss_at == "tokens":
            return load_causal_lm(self.source, dtype=dtype, attention=attention, trust_remote_code=trust)
        # Heads are never frozen, so the weights of a new one come from the checkpoint and not from this seed.
        return load_classifier(
            self.source, self.loss_at, head_seed=0, dtype=dtype, attention=attention, trust_remote_code=trust
        )

    def vector(self, name: str) -> str:
        """Returns the name of a parameter's weights in a checkpoint."""
        return f"{MASTER}/{WRAPPED if self.loss_at == 'tokens' else member_prefix(self.member)}{name}"


class _Weights:
    """The weights of a model: trained ones from the checkpoint, frozen ones from the source model."""

    def __init__(
        self,
        kind: _Kind,
        model: PreTrainedModel,
        reader: SliceReader,
        *,
        dtype: torch.dtype,
        may_be_frozen: bool,
        adapter: Lora | None,
    ) -> None:
        """Opens the checkpoint and compares it with the model, without reading weights.

        Args:
            kind: what the model is, and where it started.
            model: its modules, without weights.
            reader: reads the checkpoint.
            dtype: the type of the weights that are written.
            may_be_frozen: whether the run trained only some of the layers.
            adapter: the settings of the adapters, if the run trained only these and new heads.

        Raises:
            CheckpointError: the checkpoint belongs to another model.
        """
        self.dtype, source = dtype, kind.source
        self._kind = kind
        self._reader, self._adapter = reader, adapter
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        kept = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
        frozen = {name for name in self._shapes if kind.vector(name) not in reader}
        self._of_the_source: dict[str, Tensor] = {}
        if frozen and not may_be_frozen and adapter is None:
            raise CheckpointError(
                f"model.path={source}: the checkpoint has no {min(frozen)}, and no layer was frozen; it belongs to "
                "another model: restore the model from which the run started"
            )
        if frozen or kept:
            of_source = kind.load("sdpa" if model._supports_sdpa else "eager")
            if adapter is not None and adapter.quantise is not None:
                round_weights(of_source.base_model)
            state = of_source.state_dict()
            self._of_the_source = {name: state[name] for name in sorted(frozen | kept)}
        for name in sorted(self._shapes.keys() - frozen):
            if (size := reader.size(kind.vector(name))) != self._shapes[name].numel():
                raise CheckpointError(
                    f"model.path={source}: {name} has {self._shapes[name].numel()} elements in the model and {size} in "
                    "the checkpoint; restore the model from which the run started"
                )
        self.has_frozen = bool(frozen)
        self._buffers = kept

    def layers(self) -> Iterator[dict[str, Tensor]]:
        """Yields the weights of one decoder layer at a time, to save memory, and at the end the buffers."""
        for _, names in groupby(self._shapes, key=_layer):
            yield {name: self._read(name) for name in names}
        yield {name: self._of_the_source[name] for name in sorted(self._buffers)}

    def _read(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name in self._of_the_source:
            return self._merged(name, self._of_the_source[name].to(self.dtype))
        return self._reader.read(self._kind.vector(name), 0, shape.numel()).view(shape).to(self.dtype)

    def _merged(self, name: str, weight: Tensor) -> Tensor:
        """Returns a weight of the source with its adapter, if it has one."""
        layer, adapter = name.removesuffix(".weight"), self._adapter
        parts = [(self._kind.vector(part), part) for part in (layer + end for end in PARTS)]
        if adapter is None or any(vector not in self._reader for vector, _ in parts):
            return weight
        a, b = (_matrix(self._reader, vector, part, adapter).to(self.dtype) for vector, part in parts)
        return merge(weight, a, b, scale=adapter.scale)


def _require_same_source(checkpoint: Path, source: str) -> None:
    """Refuses a source model that has changed since the run: frozen weights are not in the checkpoint."""
    recorded = read_json(checkpoint / "run.json").get("models", {}).get(ACTOR, ())
    old = dict(recorded).get(source)
    now = weights_digest(Path(source)) if Path(source).is_dir() else None
    if old is not None and now is not None and old != now:
        raise CheckpointError(
            f"model.path={source}: its weights have changed since the checkpoint ({old} then, {now} now), and frozen "
            "layers are in no checkpoint; restore the weights with which the run started"
        )


def _layer(name: str) -> str:
    """Returns the name up to its first number, which names a layer."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1]) if first < len(parts) else ""


def _source_of(path: str, run: Path) -> str:
    """Returns the model from which the run started; a relative path starts at the folder where the run was started."""
    source = resolve_model(path)
    file = run / "environment.json"
    if Path(source).is_dir() or not file.is_file():
        return source
    environment: Any = read_json(file)
    started_in = environment.get("working_directory") if isinstance(environment, dict) else None
    there = Path(str(started_in)) / path
    return str(there) if started_in is not None and there.is_dir() else source
