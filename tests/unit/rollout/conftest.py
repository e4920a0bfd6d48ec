from collections.abc import Callable

import numpy as np
import pytest

from ray_rl.types import Completion


@pytest.fixture
def completion() -> Callable[[str], Completion]:
    def make(text: str) -> Completion:
        return Completion(
            token_ids=np.zeros(3, np.int32),
            logprobs=np.zeros(3, np.float32),
            versions=np.zeros(3, np.int32),
            finish_reason="stop",
            text=text,
        )

    return make
