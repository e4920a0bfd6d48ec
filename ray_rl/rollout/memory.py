"""Which memory of an engine is on its GPUs: weights and KV cache, weights alone, or neither.

vLLM 0.32 does not check it: an update of weights that are away, or generation without a KV cache, would write to memory
that belongs to somebody else. It also resumes generation as soon as all memory is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Protocol

from ray_rl.errors import EngineError, EngineLost

State = Literal["awake", "weights", "asleep"]
"""awake: weights and KV cache are on the GPUs. weights: the KV cache is not. asleep: neither is."""

SleepLevel = Literal[1, 2]
"""1: weights are on the host while the engine sleeps. 2: they are dropped, and a publish brings them again."""


class EngineMemory:
    """Lets one engine sleep and wake up."""

    def __init__(self, llm: Callable[[], Any], *, level: SleepLevel = 1) -> None:
        """Makes the record of an engine that is awake; `llm` returns its `AsyncLLM`."""
        self._llm = llm
        self.level: SleepLevel = level
        self.state: State = "awake"
        self.has_weights = True
        """Whether the weights are those of a model. False after a sleep at level 2, until the next publish."""

    async def sleep(self) -> None:
        """Releases weights and KV cache. Requests in flight wait, and are computed again when the engine is awake.

        Raises:
            EngineLost: vLLM failed, or the engine waits in the middle of waking up: it has to be restarted.
        """
        if self.state == "asleep":
            return
        if self.state == "weights":
            raise EngineLost("an engine whose KV cache is asleep cannot sleep again; it has to be restarted")
        await self._do("fall asleep", self._llm().sleep(level=self.level, mode="keep"))
        self.state, self.has_weights = "asleep", self.level == 1

    async def wake_weights(self) -> None:
        """Brings back the weights, so that a publish can change them.

        Raises:
            EngineLost: vLLM failed; most often the memory is not free.
        """
        if self.state != "asleep":
            return
        await self._do("wake up its weights", self._llm().wake_up(["weights"]))
        self.state = "weights"

    async def wake(self) -> None:
        """Brings back the KV cache, which resumes generation.

        Raises:
            EngineError: weights have to be published first.
            EngineLost: vLLM failed; most often the memory is not free.
        """
        if self.state == "awake":
            return
        if self.state == "asleep" or not self.has_weights:
            raise EngineError(f"an engine in the state {self.state!r} cannot sample; publish weights to it first")
        if not await self._do("wake up its KV cache", self._llm().wake_up(["kv_cache"])):
            raise EngineLost("vLLM still sleeps after all its memory was woken up; see its log")
        self.state = "awake"

    def require_weights(self, what: str) -> None:
        """Refuses what reads or writes weights while they are away.

        Raises:
            EngineError: they are away.
        """
        if self.state == "asleep":
            raise EngineError(f"{what} of an engine that is asleep: its weights have to be woken up first")

    async def _do(self, what: str, call: Any) -> Any:
        doing = asyncio.ensure_future(call)
        await asyncio.wait({doing})  # bound: the driver's call has weight_sync.timeout_s
        error = doing.exception()  # AsyncLLM passes on every error of its core as a plain Exception
        if error is not None:
            raise EngineLost(f"could not {what}: {error}") from error
        return doing.result()


class HasMemory(Protocol):
    """An engine that can sleep."""

    @property
    def memory(self) -> EngineMemory:
        """Which of its memory is on its GPUs."""


async def sleep(engine: HasMemory) -> None:
    """Releases the memory of weights and KV cache (see `EngineMemory.sleep`)."""
    await engine.memory.sleep()


async def wake_weights(engine: HasMemory) -> None:
    """Brings back the weights (see `EngineMemory.wake_weights`)."""
    await engine.memory.wake_weights()


async def wake(engine: HasMemory) -> None:
    """Brings back the KV cache, and starts generation (see `EngineMemory.wake`)."""
    await engine.memory.wake()
