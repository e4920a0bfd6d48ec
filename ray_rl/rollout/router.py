"""Which engine takes the next request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Router:
    """Gives each request to the engine with the fewest outstanding tokens; ties go to the first."""

    def __init__(self, engines: int) -> None:
        self._outstanding = [0] * engines

    @contextmanager
    def place(self, tokens: int) -> Iterator[int]:
        """Index of the engine to use for a request of at most `tokens` tokens, which count as long as it runs."""
        engine = min(range(len(self._outstanding)), key=self._outstanding.__getitem__)
        self._outstanding[engine] += tokens
        try:
            yield engine
        finally:
            self._outstanding[engine] -= tokens

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Tokens under way at each engine."""
        return tuple(self._outstanding)
