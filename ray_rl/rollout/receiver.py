"""Receives published weights in an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_rl.config.rollout import OnPublish
from ray_rl.errors import WeightMismatch, WeightSyncError
from ray_rl.rollout.adapter import EngineAdapter
from ray_rl.rollout.memory import EngineMemory, SleepLevel

if TYPE_CHECKING:
    from vllm.v1.engine import PauseMode


DIGESTS = "digests"
"""Key of an update without parameters: its value is the digests of the weights that were sent."""
MISMATCH = "the received weights differ from those that were sent"
"""Start of the error of a receiver whose weights differ from those that were sent."""
NOT_SERVED = "vLLM does not serve the adapter that arrived"
"""Start of the error of a worker whose adapter in vLLM is another one than the last that arrived."""

PAUSES: Mapping[OnPublish, PauseMode] = {"keep": "keep", "finish": "wait", "abort_and_resume": "abort"}
"""vLLM's names of the modes."""


class WeightReceiver:
    """Receives weights with vLLM's native transfer: join once; for each publish begin, receive, commit and resume."""

    def __init__(
        self,
        llm: Any,
        *,
        on_publish: OnPublish = "keep",
        sleep_level: SleepLevel = 1,
        adapter: EngineAdapter | None = None,
    ) -> None:
        """Makes the receiver of an engine.

        Args:
            llm: vLLM's `AsyncLLM`, started with a weight-transfer backend; an `Engine` sets it when it has started.
            on_publish: what happens to completions in flight.
            sleep_level: what happens to the weights while the engine sleeps.
            adapter: the adapter that it serves on top of its model; None for weights alone.
        """
        self._llm = llm
        self._adapter = adapter
        self._has_adapter = False
        """Whether a publish has brought the adapter."""
        self.memory = EngineMemory(lambda: self._llm, level=sleep_level)
        """Which memory of the engine is on its GPUs."""
        self._pause = PAUSES[on_publish]

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Joins the trainer's transfer group; blocks until the trainer has joined."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        # bound: the driver's call has weight_sync.timeout_s
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def begin_update(self) -> None:
        """Pauses generation and prepares the model for new weights. `on_publish` applies to completions in flight.

        The caches are cleared, because the attention of later tokens must not mix keys and values of two versions.
        """
        self.memory.require_weights("an update")
        await self._llm.pause_generation(mode=self._pause, clear_cache=True)
        await self._llm.start_weight_update()

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads the weights that the trainer sends."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def prove(self, digests: Mapping[str, Mapping[int, str]]) -> None:
        """Compares the received weights with the digests of the weights that the trainer sent. The update stays open.

        Raises:
            WeightMismatch: they differ; the engine must not serve.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        request = WeightTransferUpdateRequest(update_info={DIGESTS: digests})
        proving = asyncio.ensure_future(self._llm.update_weights(request))
        await asyncio.wait({proving})  # bound: the driver's call has weight_sync.timeout_s
        error = proving.exception()
        _, found, details = str(error).partition(MISMATCH)  # vLLM keeps only the text of our error, in its own error
        if found:
            raise WeightMismatch(MISMATCH + details.splitlines()[0].partition("'")[0]) from None
        proving.result()

    async def commit(self, version: int) -> int:
        """Ends the update, sets the new version, and returns the version that vLLM reports. Generation stays paused.

        Raises:
            WeightMismatch: vLLM has another adapter than the one that arrived.
            WeightSyncError: vLLM has not dropped keys and values of older weights.
        """
        await self._llm.finish_weight_update()
        if self._adapter is not None:
            # Not earlier: vLLM removes adapters when an update ends.
            complaints = await self._llm.collective_rpc("install_adapter", args=(self._adapter.scale,))
            for complaint in filter(None, complaints):
                raise WeightMismatch(complaint)
            self._has_adapter = True
        if not await self._llm.reset_prefix_cache():
            raise WeightSyncError(
                f"vLLM still has keys and values of older weights when it should begin to serve version {version}; "
                "install the version of vLLM that ray_rl was tested with"
            )
        await self._llm.update_weight_version(str(version))
        self.memory.has_weights = True
        return int(await self._llm.get_weight_version())

    async def checksums(self) -> list[dict[str, str]]:
        """Returns the SHA-256 of every loaded weight by name, and a digest of every matrix of an adapter, by worker.

        A weight that exists only in the packed layout of a kernel has the digest of an empty tensor.
        """
        self.memory.require_weights("checksums")
        found = list(await self._llm.compute_weight_checksums())
        if self._adapter is None:
            return found
        adapters = await self._llm.collective_rpc("adapter_checksums")
        return [weights | adapter for weights, adapter in zip(found, adapters, strict=True)]

    async def resume(self) -> None:
        """Starts generation again; kept requests continue. An engine without its KV cache starts when it wakes up."""
        if self.memory.state == "awake":
            await self._llm.resume_generation()

    async def abort_update(self) -> None:
        """Ends an update that a failed publish left incomplete; generation stays paused.

        After this call the engine holds a mix of old and new weights and must not serve. We still call
        `finish_weight_update`, because vLLM rejects a new update while one is open, and half-filled layers would carry
        over into the next one. A reception that failed has already closed the update without resetting its layers, so
        we first open it again. An engine that is asleep has no open update.
        """
        if self.memory.state == "asleep":
            return
        opening = asyncio.ensure_future(self._llm.start_weight_update())
        await asyncio.wait({opening})  # bound: the driver's call has weight_sync.timeout_s
        opening.exception()  # vLLM raises if the update is still open
        await self._llm.finish_weight_update()
