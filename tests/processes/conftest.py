import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from ray_rl.config.rewards import RewardConfig
from ray_rl.metrics.metric import Metric
from ray_rl.rewards.combine import Rewards, build_rewards
from ray_rl.types import Completion, FinishReason, Prompt, RolloutGroup
from tests.make import completion, group


class Scoring:
    """Rewards for tests that are no coroutines: `score` runs an event loop of its own."""

    def __init__(self, rewards: Rewards) -> None:
        self.rewards = rewards
        self.close = rewards.close

    def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[RolloutGroup, list[Metric]]:
        return asyncio.run(self.rewards.score(group(*completions, prompt=prompt)))


@pytest.fixture
def rewards() -> Iterator[Callable[..., Scoring]]:
    """Builds rewards from the sections of a configuration, and closes them."""
    built = []

    def build(*sections: dict[str, Any]) -> Scoring:
        built.append(Scoring(build_rewards(TypeAdapter(list[RewardConfig]).validate_python(list(sections)))))
        return built[-1]

    yield build
    for each in built:
        each.close()


@pytest.fixture
def prompt() -> Callable[..., Prompt]:
    def make(**columns: Any) -> Prompt:
        return Prompt("addition/17", (1, 2, 3), "What is 17+25?", columns)

    return make


@pytest.fixture
def says() -> Callable[..., Completion]:
    def make(text: str, *, tokens: int = 3, finish_reason: FinishReason = "stop") -> Completion:
        return completion([0] * tokens, text, finish_reason=finish_reason)

    return make


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, str]]:
    """A custom reward from the body of a function `judge(completions, **columns)`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str) -> dict[str, str]:
        (tmp_path / "users_rewards.py").write_text(
            f"import math, os, time\ndef judge(completions, **columns):\n    {body}\n"
        )
        return {"kind": "custom", "function": "users_rewards:judge"}

    return write
