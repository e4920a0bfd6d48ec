"""The two phases of a step, in which different roles need the GPUs."""

from __future__ import annotations

from typing import Protocol


class Phases(Protocol):
    """Gives GPUs that engines share with models to one side after the other. A publish ends in the phase `sample`."""

    async def train(self) -> None:
        """Returns when models can compute: engines that share their GPUs are asleep."""

    async def sample(self) -> None:
        """Returns when engines can sample: models that share their GPUs are on the host."""
