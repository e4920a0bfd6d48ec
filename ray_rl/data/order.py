"""The order of rows in the epochs of a run, and the identity of their source that a saved position must match."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from ray_rl.errors import ConfigError


class RowOrder:
    """The order of a source's rows in each epoch: a function of (seed, epoch)."""

    def __init__(self, *, kind: str, size: int, seed: int, shuffle: bool, digests: Mapping[str, str]) -> None:
        """Makes the order.

        Args:
            kind: `data.kind`.
            size: the number of rows in an epoch.
            seed: `run.seed`.
            shuffle: `data.shuffle`.
            digests: digests of the content, by the name of the file or data set.
        """
        self._size, self._seed, self._shuffle = size, seed, shuffle
        self._kind, self._digests = kind, digests

    def of_epoch(self, epoch: int) -> range | list[int]:
        """Returns the indices of the rows in the order of an epoch."""
        return epoch_order(self._size, shuffle=self._shuffle, seed=self._seed, epoch=epoch)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what a saved position must have in common with this source, as JSON values."""
        return {
            "kind": self._kind,
            "size": self._size,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "digests": dict(self._digests),
        }

    def compare(self, saved: Mapping[str, Any]) -> None:
        """Checks that a fingerprint is that of this source with the same data.

        Digests are compared only if `saved` has them: checkpoints of earlier versions have none.

        Raises:
            ConfigError: the fingerprint is another one; the message lists the differences.
        """
        ours = self.fingerprint()
        if "digests" not in saved:
            del ours["digests"]
        changed = _changes(saved, ours)
        if changed:
            raise ConfigError(
                f"data: the saved position belongs to another source: {'; '.join(changed)}; "
                "resume with the data and the run.seed that the run started with"
            )


def epoch_order(size: int, *, shuffle: bool, seed: int, epoch: int) -> range | list[int]:
    """Returns the order of the rows in an epoch: a function of (seed, epoch)."""
    if not shuffle:
        return range(size)
    order = list(range(size))
    random.Random(f"epoch/{seed}/{epoch}").shuffle(order)
    return order


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describes the differences between two fingerprints."""
    lines = [
        f"{key} was {before.get(key)!r}, is {now[key]!r}"
        for key in now
        if key != "digests" and before.get(key) != now[key]
    ]
    old, new = before.get("digests", {}), now.get("digests", {})
    lines += [f"{name} is new" for name in new if name not in old]
    lines += [f"{name} is missing" for name in old if name not in new]
    lines += [f"the content of {name} has changed" for name in new if name in old and old[name] != new[name]]
    return lines
