"""A worker without a model."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    node: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Shares:
    """As `training.share.Scores`, which takes seconds to import."""

    rows: np.ndarray
    values_MT: np.ndarray


class Light:
    """What a worker holds in these tests: does as it is told."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def rank(self) -> int:
        return self._rank

    def place(self) -> Place:
        import ray

        context = ray.get_runtime_context()
        return Place(context.get_node_id(), tuple(context.get_accelerator_ids()["GPU"]))

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def second_sleeps(self, seconds: float) -> None:
        time.sleep(seconds * self._rank)

    def second_fails(self, error: Exception) -> None:
        if self._rank == 1:
            raise error

    def first_dies_late(self, last_words: str, *, after_s: float) -> None:
        if self._rank == 1:
            raise RuntimeError("Connection closed by peer")
        time.sleep(after_s)
        print(last_words, file=sys.stderr, flush=True)
        os._exit(1)

    def scores(self, batch: Any) -> Any:
        """Minus the token, for every second row from the rank on."""
        rows = np.arange(self._rank, batch.rows, 2)
        return Shares(rows, -batch.tokens_RT[rows].astype(np.float32))


class Bystander:
    """Only sees where it is."""

    def sight(self) -> tuple[str, list[int], str | None]:
        """Node, GPUs, and CUDA_VISIBLE_DEVICES."""
        import ray

        context = ray.get_runtime_context()
        gpus = [int(gpu) for gpu in context.get_accelerator_ids()["GPU"]]
        return context.get_node_id(), gpus, os.environ.get("CUDA_VISIBLE_DEVICES")
