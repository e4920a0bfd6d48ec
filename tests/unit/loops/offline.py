"""The driver of training on examples, from its configuration on, over a scripted learner."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_rl.app.build_offline import build_offline_session
from ray_rl.app.records import open_offline_run
from ray_rl.checkpoint.export_marks import write_step
from ray_rl.config import RunConfig
from ray_rl.data.examples.load import Examples
from ray_rl.data.examples.order import ExampleOrder
from ray_rl.loops.checkpoints import read_progress
from ray_rl.loops.offline import train
from ray_rl.loops.resuming import is_finished, store_of
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.metric import Each, Mean, Total
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.types import Answer, Example
from tests.run_folders import new_run_folder, reopened

NAN = float("nan")


def answer(token: int, *, length: int = 2) -> Answer:
    return Answer(np.full(length, token, np.int32), np.ones(length, np.bool_))


def pair(index: int) -> Example:
    """Its answers have the tokens 10 * index + 1 and 10 * index + 2."""
    answers = (answer(10 * index + 1), answer(10 * index + 2, length=3))
    return Example(id=f"row:{index}", prompt_ids=(1, index), answers=answers, prompt="?", texts=("yes", "no"))


def judged(index: int) -> Example:
    return Example(id=f"row:{index}", prompt_ids=(1, index), answers=(answer(index),), label=index % 2 == 0)


class Learner:
    """Writes down what it is asked. The log-probability of a token is a hundredth of its number, below 0."""

    def __init__(self, *, evaluations: list[float]) -> None:
        self.journal: list[str] = []
        self.batches: list[Any] = []
        self.scored: list[tuple[str, ...]] = []
        self.errors: dict[str, Exception] = {}
        self.meanwhile: dict[str, Callable[[], Any]] = {}
        self.nonfinite: set[str] = set()
        self._evaluations = iter(evaluations)

    def enter(self, call: str) -> None:
        self.journal.append(call)
        self.meanwhile.get(call, lambda: None)()
        if call in self.errors:
            raise self.errors[call]

    async def logprobs(self, batch: Any) -> Any:
        self.enter(f"score {batch.ids[0]} to {batch.ids[-1]}")
        self.scored.append(batch.ids)
        values_RT = -batch.tokens_RT.astype(np.float32) / 100
        for row in range(batch.rows):
            if batch.ids[row // batch.group_size] in self.nonfinite:
                values_RT[row] = NAN
        return values_RT

    async def update(self, batch: Any) -> list[Any]:
        self.enter(f"update {len(self.batches) + 1}")
        self.batches.append(batch)
        rewards = {id: float(len(self.batches)) for id in batch.ids}
        return [Mean("dpo/loss", 1.0, 1), Total("train/tokens", 7), Each("reward_margin", rewards)]

    async def evaluate(self, batch: Any) -> list[Any]:
        self.enter(f"evaluate {batch.ids[0]} to {batch.ids[-1]}")
        metrics = [Mean("dpo/loss", next(self._evaluations), 1), Total("train/tokens", 7)]
        return [*metrics, Each("reward_margin", dict.fromkeys(batch.ids, 0.0))]

    async def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_text(f"after update {len(self.batches)}")

    async def is_saved(self) -> bool:
        return True

    async def load(self, folder: Path) -> None:
        self.enter(f"load {(folder / 'weights').read_text()}")

    async def export(self, folder: Path, *, step: int) -> None:
        self.enter(f"export step {step}")
        folder.mkdir(exist_ok=True)
        write_step(folder, step)


class Loop:
    """The driver of a run folder, from its newest checkpoint."""

    def __init__(
        self, config: RunConfig, examples: Examples, *, live: bool, evaluations: list[float], model: str
    ) -> None:
        self.config, self.examples = config, examples
        self.actor, self.reference = Learner(evaluations=evaluations), Learner(evaluations=[]) if live else None
        self.models = {"actor": [["tiny", model]]}
        self.store = store_of(config, RunFolder.of(config.run))
        self.since = self.store.latest(print)
        self.console = io.StringIO()
        step = None if self.since is None else read_progress(self.since).step
        is_new = not RunFolder.of(config.run).root.exists()
        self.folder = new_run_folder(config) if is_new else reopened(config, step=step)
        self.run = open_offline_run(config, self.folder, RunConsole(self.console), step=step or 0, version=step or 0)
        self.stop = Stop(grace_s=600)

    def said(self) -> str:
        return " ".join(self.console.getvalue().split())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.metrics_jsonl.read_text().splitlines()]

    def is_finished(self) -> bool:
        return is_finished(self.config, self.folder, self.store.latest(print))

    async def train(self) -> None:
        order = ExampleOrder(self.examples, shuffle=False, seed=0)
        roles = (order, self.actor, self.actor, self.reference)
        await train(
            build_offline_session(
                self.config,
                self.folder,
                self.run,
                self.examples,
                *roles,
                stop=self.stop,
                since=self.since,
                models=self.models,
            )
        )
        self.run.close()


Make = Callable[..., Loop]


@pytest.fixture
def offline_loop(tmp_path: Path) -> Iterator[Make]:
    loops: list[Loop] = []

    def make(
        *,
        kind: str = "dpo",
        rows: int = 4,
        held_out: int = 0,
        steps: int = 2,
        name: str = "test",
        live: bool = False,
        evaluations: list[float] | None = None,
        evaluate_every: int | None = None,
        patience: int | None = None,
        checkpoint: dict[str, object] | None = None,
        train: dict[str, object] | None = None,
        model: str = "blake2b:1",
        algorithm: dict[str, object] | None = None,
    ) -> Loop:
        one = judged if kind == "kto" else pair
        examples = Examples(
            kind="jsonl",
            train=[one(index) for index in range(rows)],
            held_out=[one(index) for index in range(rows, rows + held_out)],
            lines=[],
            digests={},
        )
        config = RunConfig.model_validate(
            {
                "run": {
                    "name": name,
                    "dir": str(tmp_path),
                    "steps": steps,
                    "evaluate_every": evaluate_every,
                    "patience": patience,
                },
                "model": {"path": "tiny"},
                "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.1 if held_out else 0.0},
                "algorithm": {"kind": kind, "batch_size": 2} | (algorithm or {}),
                "reference": {"when": "during" if live else "before"},
                "checkpoint": {"every_steps": None} if checkpoint is None else checkpoint,
                "train": train or {},
            }
        )
        loops.append(Loop(config, examples, live=live, evaluations=evaluations or [], model=model))
        return loops[-1]

    yield make
    for each in loops:
        each.run.close()
