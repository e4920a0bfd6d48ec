"""An environment that is a program: an agent that asks an OpenAI client for each turn of the policy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray_rl.environments.base import Opening, Reply, Step
from ray_rl.environments.program.endpoint import MODEL, Asked, Endpoint, roles_of
from ray_rl.errors import ConfigError, EnvironmentFailed
from ray_rl.types import Message

ROW = "RAY_RL_ROW"
"""The environment variable with the file of the row, which is JSON."""
SEED = "RAY_RL_SEED"
KEPT_LINES = 50
"""The last lines of a program's output that are kept."""
LINE_BYTES = 2**20
"""The longest line of output that is read; a longer one is cut."""
SHOWN_CHARACTERS = 500
CLOSE_S = 5.0
"""How long a program may take to end after it was killed."""


def maker_of_program(command: Sequence[str], variables: Mapping[str, str]) -> Callable[[], Program]:
    """Returns what starts a program for each episode.

    Raises:
        ConfigError: aiohttp is not installed.
    """
    if find_spec("aiohttp") is None:
        raise ConfigError(
            "environment.kind=program needs the package aiohttp, which comes with ray[default]; pip install aiohttp"
        )
    return partial(Program, command, variables, Endpoint())


class Program:
    """One run of a program. It gets the row as a file, and prints its reward as JSON in its last line."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], endpoint: Endpoint) -> None:
        self._command, self._variables, self._endpoint = command, variables, endpoint
        self._key = f"episode-{uuid.uuid4().hex}"
        self._known: tuple[Message, ...] = ()
        """The conversation so far, with the turns of the policy."""
        self._process: asyncio.subprocess.Process | None = None
        self._printed: deque[str] = deque(maxlen=KEPT_LINES)
        self._asked: Asked | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def reset(self, row: Mapping[str, Any], seed: int) -> Opening:
        """Starts the program, and returns the conversation of its first request."""
        url, self._requests = await self._endpoint.open(self._key)
        self._folder = tempfile.TemporaryDirectory(prefix="ray_rl-")
        file = Path(self._folder.name) / "row.json"
        file.write_text(json.dumps(dict(row), default=str))
        own = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": self._key, "OPENAI_MODEL": MODEL}
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, **own, ROW: str(file), SEED: str(seed), **self._variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=LINE_BYTES,
        )
        self._reading = asyncio.ensure_future(self._read())
        asked = await self._next()
        if asked is None:
            raise EnvironmentFailed(f"the program ended before it asked for a turn; it printed {self._shown()}")
        self._known = asked.messages
        return Opening(asked.messages, asked.tools)

    async def step(self, reply: Reply) -> Step:
        """Gives the program its turn, and returns what it asks next, or its reward."""
        assert self._asked is not None, "a program waits for its turn"
        self._asked.answer.set_result(reply)
        self._known = (*self._known, Message("assistant", reply.text))
        asked = await self._next()
        if asked is None:
            return self._result()
        return Step(self._new_messages(asked))

    async def close(self) -> None:
        """Ends the program and its children."""
        if self._asked is not None and not self._asked.answer.done():
            self._asked.answer.cancel()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.wait([self._reading], timeout=CLOSE_S)
        await self._endpoint.close(self._key)
        if self._folder is not None:
            self._folder.cleanup()

    async def _next(self) -> Asked | None:
        """Returns the next request of the program; None if it ended."""
        asking = asyncio.ensure_future(self._requests.get())  # bound: cancelled below, or by the limit of each call

        # bound: the caller has a limit for each call of an environment
        await asyncio.wait([asking, self._reading], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
            return None
        self._asked = asking.result()
        return self._asked

    def _new_messages(self, asked: Asked) -> tuple[Message, ...]:
        """Returns what a request adds to the conversation.

        Raises:
            EnvironmentFailed: it changes what was said before.
        """
        known = self._known
        same = [_same(*each) for each in zip(known, asked.messages, strict=False)]
        if len(asked.messages) <= len(known) or not all(same):
            at = same.index(False) if False in same else len(asked.messages)
            raise EnvironmentFailed(
                f"the program changed its conversation: message {at + 1} is not what it was (roles: "
                f"{roles_of(known)}; now: {roles_of(asked.messages)}); an episode is one conversation that only grows"
            )
        new = asked.messages[len(known) :]
        self._known = asked.messages
        return new

    def _result(self) -> Step:
        """Returns the reward that the program printed.

        Raises:
            EnvironmentFailed: it failed, or its last line is not the JSON that is asked for.
        """
        assert self._process is not None, "it has been started"
        lines = [line for line in self._printed if line.strip()]
        if self._process.returncode:
            raise EnvironmentFailed(
                f"the program ended with code {self._process.returncode}; it printed {self._shown()}"
            )
        try:
            found = json.loads(lines[-1])
            return Step(reward=found["reward"], done=True, metrics=found.get("metrics", {}))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EnvironmentFailed(
                'the last line of the program is not JSON like {"reward": 1.0, "metrics": {}}; it printed '
                f"{self._shown()}"
            ) from error

    def _shown(self) -> str:
        return repr("\n".join(self._printed)[-SHOWN_CHARACTERS:])

    async def _read(self) -> None:
        """Keeps the last lines of the output, until the program ends."""
        assert self._process is not None and self._process.stdout is not None, "asked for above"
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit
                continue
            if not line:
                break
            self._printed.append(line.decode(errors="replace").rstrip("\n"))
        await self._process.wait()  # bound: it is killed at the end of its episode


def _same(one: Message, other: Message) -> bool:
    """Returns whether two messages say the same: clients may trim the space around what the policy said."""
    return one.role == other.role and one.content.strip() == other.content.strip()
