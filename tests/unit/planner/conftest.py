from collections.abc import Callable
from typing import Any

import pytest

from ray_rl.config import RunConfig
from tests.algorithm import algorithm

SEVEN = "Qwen/Qwen2.5-7B-Instruct"
SEVENTY = "meta-llama/Llama-3.3-70B-Instruct"
REWARD = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"


@pytest.fixture
def make() -> Callable[..., RunConfig]:
    """A configuration whose sections are those given over the smallest."""

    def make_config(**sections: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "run": {"name": "test", "steps": 1},
                "model": {"path": SEVEN, "dtype": "bfloat16"},
                "data": {"kind": "addition", "max_prompt_tokens": 512},
                "rewards": [{"kind": "number"}],
                "algorithm": algorithm(**sections.pop("algorithm", {})),
                "rollout": {"max_tokens": 1536},
                "cluster": {"address": "auto"},
            }
            | sections
        )

    return make_config
