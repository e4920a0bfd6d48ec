"""The order in which examples are trained on, with a position that survives an interruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_rl.data.examples.load import Examples
from ray_rl.data.order import RowOrder
from ray_rl.errors import ConfigError
from ray_rl.types import Example


class ExampleOrder:
    """An endless stream of the examples to train on, epoch after epoch.

    The order of an epoch is a function of (seed, epoch), the same as that of prompts.
    """

    def __init__(self, examples: Examples, *, shuffle: bool, seed: int) -> None:
        """Makes the order, at the start of the first epoch.

        Args:
            examples: the examples of the run.
            shuffle: `data.shuffle`.
            seed: `run.seed`.
        """
        self._examples, self._tokens = examples.train, examples.tokens
        self._orders = RowOrder(
            kind=examples.kind, size=len(examples.train), seed=seed, shuffle=shuffle, digests=examples.digests
        )
        self._epoch = 0
        self._index = 0
        """The next place in the order of the epoch."""
        self._order: Sequence[int] = self._orders.of_epoch(0)

    @property
    def epoch(self) -> int:
        """Epoch of the last example that was taken, from 0."""
        return self._epoch

    def take(self, count: int) -> list[Example]:
        """Returns the next examples, from as many epochs as necessary."""
        taken: list[Example] = []
        while len(taken) < count:
            if self._index == len(self._order):
                self._go_to(self._epoch + 1, 0)
            end = min(self._index + count - len(taken), len(self._order))
            taken += [self._examples[place] for place in self._order[self._index : end]]
            self._index = end
        return taken

    def state(self) -> dict[str, Any]:
        """Returns the state for `restore`, as JSON values."""
        position = {"epoch": self._epoch, "index": self._index}
        return {"source": self._orders.fingerprint(), "tokens": self._tokens} | position

    def compare(self, state: Mapping[str, Any]) -> None:
        """Checks that a state belongs to the same examples in the same order.

        Raises:
            ConfigError: it belongs to others; the message lists the differences.
        """
        self._orders.compare(state["source"])
        if state.get("tokens", self._tokens) != self._tokens:
            raise ConfigError(
                "model.path: the examples have other tokens than when the run started, though the data is the same: "
                "its chat template or tokenizer was edited since, or ray_rl was updated and tokenises otherwise; put "
                "the old files back, or start another run"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the position of `state`, so that the same examples follow.

        Raises:
            ConfigError: as in `compare`.
        """
        self.compare(state)
        self._go_to(state["epoch"], state["index"])

    def _go_to(self, epoch: int, index: int) -> None:
        self._epoch, self._index = epoch, index
        self._order = self._orders.of_epoch(epoch)
