"""Imports of heavy libraries with fewer searches for cyclic garbage.

Python looks for cycles each time some hundred objects were created. An import creates a million that stay, and a fifth
of its processor time or more is spent on looking through them again and again.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

USUAL = gc.get_threshold()
"""Python's thresholds of the three generations."""
IMPORTING = (100_000, 10, 10)
"""The same during imports: still low enough for a process that would keep them."""


def collect_less() -> None:
    """Looks for cycles less often, until `collect_as_usual`."""
    gc.set_threshold(*IMPORTING)


def collect_as_usual() -> None:
    """Looks for cycles as often as Python does by default."""
    gc.set_threshold(*USUAL)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Looks for cycles less often within the block, which should only import modules."""
    collect_less()
    try:
        yield
    finally:
        collect_as_usual()


class _Message:
    """Calls `collect_less` in the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _arrived, ()


def _arrived() -> _Message:
    collect_less()
    return _Message()


def quicken_spawned() -> None:
    """Makes the processes that this one spawns look for cycles less often from their start: see `collect_as_usual`.

    multiprocessing sends the settings of a process before the function that it runs, whose modules take seconds to
    import. Processes that they spawn inherit it.
    """
    # multiprocessing has no public place for it. With it, a process imports vLLM in 6.4 processor seconds, not
    # in 8.4.
    multiprocessing.current_process()._config["ray_rl_imports"] = _Message()  # type: ignore[attr-defined]
