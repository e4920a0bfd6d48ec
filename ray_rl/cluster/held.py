"""The objects in the workers under training: trainers that also save their rank and send weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_rl.checkpoint.hugging_face import export_adapters, export_models
from ray_rl.checkpoint.slice_writer import SliceWriter
from ray_rl.checkpoint.slices import SliceReader
from ray_rl.config.adapter import Lora
from ray_rl.training.adapter_stream import MergedStream, SeparateStream
from ray_rl.training.gather import WeightStream
from ray_rl.training.member import Member
from ray_rl.training.objectives.objective import Objective
from ray_rl.training.objectives.policy import PolicyObjective
from ray_rl.training.settings import TrainSettings
from ray_rl.training.trainer import Trainer
from ray_rl.types import Batch, TrainBatch
from ray_rl.weight_sync.messages import Rendezvous, Sent
from ray_rl.weight_sync.transports import Transport, build_sender


class SavedTrainer(Trainer[Batch]):
    """A rank of a model under training, which also writes and restores its part of checkpoints."""

    def __init__(self, objective: Objective[Batch], settings: TrainSettings, member: Member, *, threads: int) -> None:
        """Loads the model, as `Trainer`."""
        super().__init__(objective, settings, member, threads=threads)
        self._writer, self._file = SliceWriter(), f"rank_{member.rank}.safetensors"

    def save(self, folder: str) -> None:
        """Returns when this rank's state is copied; a thread then writes it while training continues: `is_saved`."""
        self._writer.write(Path(folder) / self._file, self.zero.slices(), self.zero.state())

    def is_saved(self) -> bool:
        """Returns whether the state is written (see `SliceWriter.is_written`)."""
        return self._writer.is_written()

    def load(self, folder: str) -> None:
        """Restores the state of the ranks that wrote to a folder; a collective."""
        reader = SliceReader(Path(folder))
        self.zero.restore(reader.read, reader.states["rank_0"])


class ExportedTrainer(SavedTrainer[Batch]):
    """A rank of the actor, which also exports its weights."""

    def __init__(
        self,
        objective: Objective[Batch],
        settings: TrainSettings,
        member: Member,
        *,
        threads: int,
        source: str,
        chat_template: Callable[[], str | None],
        chat: bool,
        adapter: Lora | None,
        exports_adapters: bool,
    ) -> None:
        """Loads the model, as `Trainer`.

        Args:
            objective: the model and its loss.
            settings: how the model is trained.
            member: this rank.
            threads: threads of this process on CPU.
            source: the folder or hub name of the model, whose other files an export copies.
            chat_template: returns that of an export; None keeps the model's own.
            chat: whether the texts of the training go through the chat template.
            adapter: the adapters of the model, if only these are trained.
            exports_adapters: whether an export has the adapters alone.
        """
        super().__init__(objective, settings, member, threads=threads)
        self._source, self._chat_template, self._chat = source, chat_template, chat
        self._adapter, self._exports_adapters = adapter, exports_adapters

    def export(self, folder: str, step: int) -> None:
        """Writes the model of a step in Hugging Face format; a collective of the ranks."""
        if self._adapter is not None and self._exports_adapters:
            self._export_adapters(self._adapter, Path(folder), step)
            return
        stream = self._whole_stream()
        parameters = ((spec.name, tensor) for group in stream.groups() for spec, tensor in group)
        export_models(
            self.model.exported,
            parameters,
            source=self._source,
            to=Path(folder),
            step=step,
            chat_template=self._chat_template(),
            chat=self._chat,
        )

    def _whole_stream(self) -> WeightStream:
        """Returns the weights under the names of the model itself, with the adapters merged."""
        return self.stream if self._adapter is None else MergedStream(self.stream, scale=self._adapter.scale)

    def _export_adapters(self, adapter: Lora, to: Path, step: int) -> None:
        stream = SeparateStream(self.stream)
        groups = stream.groups(stream.trained_specs)
        export_adapters(
            ((spec.name, tensor) for group in groups for spec, tensor in group),
            adapter,
            source=self._source,
            to=to,
            step=step,
            chat_template=self._chat_template(),
        )


class Policy(ExportedTrainer[TrainBatch]):
    """A rank of the actor, which also sends its weights to the engines."""

    def __init__(
        self,
        objective: PolicyObjective,
        settings: TrainSettings,
        member: Member,
        *,
        threads: int,
        transport: Transport,
        chat_template: Callable[[], str | None],
        chat: bool,
        exports_adapters: bool,
        publishes_adapters: bool,
    ) -> None:
        """Loads the model, as `ExportedTrainer`.

        `transport` carries its weights to the engines: whole ones, or the adapters apart if `publishes_adapters`.
        """
        network = objective.network
        super().__init__(
            objective,
            settings,
            member,
            threads=threads,
            source=network.folder,
            chat_template=chat_template,
            chat=chat,
            adapter=network.adapter,
            exports_adapters=exports_adapters,
        )
        stream = SeparateStream(self.stream) if publishes_adapters else self._whole_stream()
        self._sender = build_sender(transport, stream, is_sender=member.rank == 0)

    def announce(self) -> dict[str, Any]:
        """Describes the weights that rank 0 sends (see `Sender.announce`)."""
        return self._sender.announce()

    def join_transfer(self, rendezvous: Rendezvous) -> None:
        """Meets the engines (see `Sender.join`)."""
        self._sender.join(rendezvous)

    def send_weights(self) -> Sent:
        """Sends the weights to the engines; a collective of the ranks."""
        return self._sender.send()
