"""The objects in the workers under training: trainers that also save their rank and send weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_rl.checkpoint.hugging_face import export_policy
from ray_rl.checkpoint.slice_writer import SliceWriter
from ray_rl.checkpoint.slices import SliceReader
from ray_rl.config import RunConfig
from ray_rl.data.chat import ChatTokenizer
from ray_rl.training.build import policy_parts, value_parts
from ray_rl.training.objectives.objective import Objective
from ray_rl.training.process_group import Member
from ray_rl.training.settings import TrainSettings
from ray_rl.training.trainer import Trainer
from ray_rl.weight_sync.senders.sender import Rendezvous, Sent
from ray_rl.weight_sync.transports import build_sender, transport_of


class SavedTrainer(Trainer):
    """A rank of a model under training, which also writes and restores its part of checkpoints."""

    def __init__(self, objective: Objective, settings: TrainSettings, member: Member, *, threads: int) -> None:
        """Loads the model, as `Trainer`."""
        super().__init__(objective, settings, member, threads=threads)
        self._writer, self._file = SliceWriter(), f"rank_{member.rank}.safetensors"

    def save(self, folder: str) -> None:
        """Returns when this rank's state is copied; a thread then writes it while training continues: `is_saved`."""
        self._writer.write(Path(folder) / self._file, self.zero.slices(), self.zero.state())

    def is_saved(self) -> bool:
        """`SliceWriter.is_written`."""
        return self._writer.is_written()

    def load(self, folder: str) -> None:
        """Restores the state of the ranks that wrote to a folder; a collective."""
        reader = SliceReader(Path(folder))
        self.zero.restore(reader.read, reader.states["rank_0"])


class Policy(SavedTrainer):
    """A rank of the actor, which also sends its weights to the engines and exports them."""

    def __init__(self, config: RunConfig, folder: str, member: Member, *, threads: int) -> None:
        """Loads the model, as `policy_trainer`."""
        super().__init__(*policy_parts(config, folder), member, threads=threads)
        self._config, self._source = config, folder
        self._sender = build_sender(transport_of(config), self.stream, is_sender=member.rank == 0)

    def announce(self) -> dict[str, Any]:
        """`Sender.announce`."""
        return self._sender.announce()

    def join_transfer(self, rendezvous: Rendezvous) -> None:
        """`Sender.join`."""
        self._sender.join(rendezvous)

    def send_weights(self) -> Sent:
        """`Sender.send`."""
        return self._sender.send()

    def export(self, folder: str, step: int) -> None:
        """Writes the policy of a step in Hugging Face format; a collective of the ranks."""
        parameters = ((spec.name, tensor) for group in self.stream.groups() for spec, tensor in group)
        template = ChatTokenizer.of_policy(self._config.model, self._config.data, self._source).changed_template
        export_policy(
            self.model.causal_lm, parameters, source=self._source, to=Path(folder), step=step, chat_template=template
        )


def saved_critic(config: RunConfig, folder: str, member: Member, *, threads: int) -> SavedTrainer:
    """Loads a rank of the critic, as `value_trainer`."""
    return SavedTrainer(*value_parts(config, folder), member, threads=threads)
