from collections.abc import Callable
from pathlib import Path

import pytest

from ray_rl.config import RunConfig
from ray_rl.types import Prompt, RolloutGroup
from tests.algorithm import algorithm
from tests.make import completion, group, rollout

MakeGroup = Callable[..., RolloutGroup]


@pytest.fixture
def make_group() -> MakeGroup:
    def make(
        rewards: list[float | None],
        *,
        prompt_id: str = "addition/17",
        lengths: list[int] | None = None,
        versions: list[list[int]] | None = None,
        finish: str = "stop",
        text: str = "42",
        columns: dict | None = None,
    ) -> RolloutGroup:
        lengths = lengths or [3] * len(rewards)
        rollouts = [
            rollout(
                completion(length, text, finish_reason=finish, versions=spans),
                reward=reward,
                parts={"number": reward},
            )
            for reward, length, spans in zip(rewards, lengths, versions or [0] * len(rewards), strict=True)
        ]
        return group(*rollouts, prompt=Prompt(prompt_id, (1, 2), "What is 17+25?", columns or {"answer": "42"}))

    return make


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    def make(**run: object) -> RunConfig:
        section = {"name": "adds", "dir": str(tmp_path / "runs"), "steps": 3, "heartbeat_s": 30.0} | run
        return RunConfig.model_validate(
            {
                "run": section,
                "model": {"path": "tiny"},
                "data": {"kind": "addition"},
                "rewards": [{"kind": "number"}],
                "algorithm": algorithm(),
            }
        )

    return make


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()
