"""The examples of a run, in batches, with a position that checkpoints keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.data.examples.order import ExampleOrder
from ray_rl.metrics.metric import Last, Metric
from ray_rl.types import Example

FILE = "examples.json"
"""In the folder of a checkpoint."""


@dataclass(frozen=True, slots=True)
class ExamplePosition:
    """A position in the examples, as `ExampleOrder` describes it."""

    state: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Writes `examples.json` into a checkpoint."""
        write_json(folder / FILE, dict(self.state))


class ExampleStream:
    """Batches of examples, epoch after epoch. The last incomplete batch of an epoch continues in the next one."""

    def __init__(self, order: ExampleOrder, *, batch_size: int) -> None:
        """Starts where `order` is."""
        self._order, self._batch_size = order, batch_size

    def take(self) -> list[Example]:
        """Returns the next batch."""
        return self._order.take(self._batch_size)

    def metrics(self) -> list[Metric]:
        """Returns metrics of the position."""
        return [Last("data/epoch", self._order.epoch)]

    def position(self) -> ExamplePosition:
        """Returns the position of the next batch."""
        return ExamplePosition(self._order.state())

    def resume(self, folder: Path) -> None:
        """Continues from the position in a checkpoint.

        Raises:
            CheckpointError: the checkpoint has none.
            ConfigError: the examples have changed.
        """
        self._order.restore(saved_position(folder))


def saved_position(folder: Path) -> Mapping[str, Any]:
    """Returns the state of an `ExampleOrder` in the folder of a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    state: Mapping[str, Any] = read_json(folder / FILE)
    return state
