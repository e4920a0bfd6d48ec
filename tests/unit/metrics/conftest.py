from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ray_rl.config import RunConfig
from ray_rl.types import Completion, Prompt, Rollout, RolloutGroup

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
        versions = versions or [[0] * length for length in lengths]
        rollouts = [
            Rollout(
                Completion(
                    token_ids=np.arange(length, dtype=np.int32),
                    logprobs=np.full(length, -0.5, np.float32),
                    versions=np.array(spans, np.int32),
                    finish_reason=finish,
                    text=text,
                ),
                reward=reward,
                reward_parts={"number": reward},
            )
            for reward, length, spans in zip(rewards, lengths, versions, strict=True)
        ]
        return RolloutGroup(Prompt(prompt_id, (1, 2), "What is 17+25?", columns or {"answer": "42"}), rollouts)

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
