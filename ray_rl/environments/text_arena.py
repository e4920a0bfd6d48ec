"""Games of the package `textarena`, for one player."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray_rl.environments.base import Reply, Step
from ray_rl.errors import ConfigError
from ray_rl.types import Message

PLAYER = 0
RAW = "-raw"
"""The version of a game without wrappers, which would write the whole history into each observation."""


def maker_of_game(name: str, options: Mapping[str, Any]) -> Callable[[], Game]:
    """Returns what makes a game, once it has been made one time.

    Raises:
        ConfigError: `textarena` is not installed, or there is no such game or option, or it needs several players.
    """
    try:
        import textarena
    except ModuleNotFoundError as error:
        raise ConfigError(
            "environment.kind=textarena needs the package textarena, which is not installed; pip install "
            "'ray-rl[textarena]'"
        ) from error
    from textarena.envs.registration import ENV_REGISTRY

    if name + RAW not in ENV_REGISTRY:
        names = [each.removesuffix(RAW) for each in ENV_REGISTRY if each.endswith(RAW)]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {len(names)} games"
        raise ConfigError(f"environment.name={name}: textarena has no such game; {hint}")
    try:
        textarena.make(name + RAW, **options).reset(num_players=1, seed=0)
    except (AssertionError, TypeError, ValueError, LookupError, OSError, ImportError, SyntaxError) as error:
        raise ConfigError(
            f"environment.name={name}: the game does not start with one player and options {dict(options)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; correct environment.options, or choose "
            "another game"
        ) from error
    return partial(Game, partial(textarena.make, name + RAW, **options))


class Game:
    """One game. Its methods are coroutines without a wait: games draw from the random numbers of the whole process."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._random: object = None

    async def reset(self, row: Mapping[str, Any], seed: int) -> Sequence[Message]:
        """Begins the game, and returns its rules."""
        with self._own_random():
            self._game = self._make()
            self._game.reset(num_players=1, seed=seed)
            return [Message("user", self._observed())]

    async def step(self, reply: Reply) -> Step:
        """Makes a move."""
        with self._own_random():
            done, _ = self._game.step(reply.text)
            if done:
                rewards, info = self._game.close()
                invalid = bool(info[PLAYER].get("invalid_move"))
                return Step(reward=float(rewards[PLAYER]), done=True, metrics={"invalid_move": float(invalid)})
            return Step((Message("user", self._observed()),), metrics={"invalid_move": 0.0})

    async def close(self) -> None:
        """Ends nothing: a game is only memory."""

    def _observed(self) -> str:
        """Returns what the game has said since the last move, without the move itself."""
        from textarena import ObservationType

        _, observations = self._game.get_observation()
        if isinstance(observations, str):
            return observations
        said = [text for _, text, kind in observations if kind != ObservationType.PLAYER_ACTION]
        return "\n".join(said) or "It is your turn."

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """Gives the game random numbers of its own: it seeds, and draws from, those of the process."""
        others = random.getstate()
        if self._random is not None:
            random.setstate(self._random)  # type: ignore[arg-type]  # its type has no name
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(others)
