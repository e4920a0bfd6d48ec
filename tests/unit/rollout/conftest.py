from collections.abc import Callable

import pytest

from ray_rl.types import Completion
from tests import make


@pytest.fixture
def completion() -> Callable[[str], Completion]:
    def spoken(text: str) -> Completion:
        return make.completion([0] * 3, text, logprobs=0.0)

    return spoken
