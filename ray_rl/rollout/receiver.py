"""The receiving end of a publish in an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_rl.config.rollout import OnPublish
from ray_rl.errors import WeightMismatch

if TYPE_CHECKING:
    from vllm.v1.engine import PauseMode


DIGESTS = "digests"
"""Under which a receiver of weights is told what was sent, as a second update without parameters."""
MISMATCH = "what arrived is not what was sent"
"""How every message begins of a receiver that has got something else."""

PAUSES: Mapping[OnPublish, PauseMode] = {"keep": "keep", "finish": "wait", "abort_and_resume": "abort"}
"""What vLLM calls each."""


class WeightReceiver:
    """vLLM's native weight transfer, in the steps of a publish: join once; then begin, receive, commit, resume."""

    def __init__(self, llm: Any, *, on_publish: OnPublish = "keep") -> None:
        """Remembers the engine.

        Args:
            llm: vLLM's `AsyncLLM`, started with a weight-transfer backend; an `Engine` sets it when it has started.
            on_publish: what becomes of completions in flight.
        """
        self._llm = llm
        self._pause = PAUSES[on_publish]

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Joins the trainer's transfer group; blocks until the trainer is there."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        # bound: the driver's call has weight_sync.timeout_s
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def begin_update(self) -> None:
        """Pauses generation, as `on_publish` says with what is under way, and makes the model ready for new weights.

        The caches are cleared: attention of later tokens must not mix keys of two versions.
        """
        await self._llm.pause_generation(mode=self._pause, clear_cache=True)
        await self._llm.start_weight_update()

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads what the trainer sends."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def prove(self, digests: Mapping[str, Mapping[int, str]]) -> None:
        """Compares what arrived with the trainer's digests of what was sent; the update stays open.

        Raises:
            WeightMismatch: they differ. Nothing may be served then.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        request = WeightTransferUpdateRequest(update_info={DIGESTS: digests})
        proving = asyncio.ensure_future(self._llm.update_weights(request))
        await asyncio.wait({proving})  # bound: the driver's call has weight_sync.timeout_s
        error = proving.exception()
        _, found, details = str(error).partition(MISMATCH)  # vLLM passes on its text alone, between words of its own
        if found:
            raise WeightMismatch(MISMATCH + details.splitlines()[0].partition("'")[0]) from None
        proving.result()

    async def commit(self, version: int) -> int:
        """Ends the update under its new version, which it returns as vLLM reports it. Generation stays paused."""
        await self._llm.finish_weight_update(str(version))
        return int(await self._llm.get_weight_version())

    async def checksums(self) -> list[dict[str, str]]:
        """SHA-256 of every loaded weight by name, for each worker; of an empty tensor where only kernels have it."""
        return list(await self._llm.compute_weight_checksums())

    async def resume(self) -> None:
        """Generates again; what was kept goes on."""
        await self._llm.resume_generation()

    async def abort_update(self) -> None:
        """Ends an update that a failed publish left half done; generation stays paused.

        The weights are then a mixture, and no better for it: only a whole update makes them a version. For that vLLM
        must take a new one, which it refuses while one is open; and a layer that got some of its weights would count
        them towards the next update. Finishing sets both right. A failed reception has closed the update already, and
        left the layers as they were: it is opened again first.
        """
        opening = asyncio.ensure_future(self._llm.start_weight_update())
        await asyncio.wait({opening})  # bound: the driver's call has weight_sync.timeout_s
        opening.exception()  # it is open still
        await self._llm.finish_weight_update()
