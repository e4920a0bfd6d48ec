"""Seconds of a whole publish on real Ray, DeepSpeed and vLLM: SmolLM2-135M, ZeRO-3 on two workers, two engines.

Beside it, in the same run: the same through sockets, in buckets and one parameter at a time (gathered by DeepSpeed,
sent and loaded each by itself), and plain copies of the same bytes from memory to memory.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ray_rl.config import RunConfig
from tests.algorithm import algorithm

WORKERS, ENGINES = 2, 2
ROUNDS = 9
MODEL = "smollm2-135m-instruct"


def config_of(folder: str, scratch: Path, backend: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "publish", "dir": str(scratch), "steps": 1},
            "model": {"path": folder, "dtype": "float32"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "train": {"workers": WORKERS, "zero_stage": 3},
            "rollout": {"engines": ENGINES, "max_tokens": 8, "max_sequences": 4, "kv_cache_gib": 0.05},
            "weight_sync": {"backend": backend},
            "cluster": {"accelerator": "cpu"},
        }
    )


def gather_one_by_one(policy: Any) -> None:
    """Runs in a trainer's worker: its stream gathers as most code does, a collective of DeepSpeed's a parameter."""
    import deepspeed

    class OneByOne:
        def __init__(self, stream: Any) -> None:
            self._stream = stream
            self.specs = self.trained_specs = stream.specs

        def groups(self, specs: list[Any]) -> Iterator[list[Any]]:
            for spec in specs:
                parameter = self._stream._parameters[spec.name]
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield [(spec, parameter.detach())]

    policy._sender._stream = OneByOne(policy._sender._stream)
    policy._sender.in_flight = 1


async def timed(action: Callable[[], Awaitable[Any]], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each round, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        start_s = time.perf_counter()
        await action()
        seconds.append(time.perf_counter() - start_s)
    return seconds[1:]


async def publishes(
    folder: str, scratch: Path, backend: str, *, also_one_by_one: bool
) -> tuple[list[list[float]], int]:
    """Seconds of each round, those of one parameter at a time behind where asked; and the bytes of the weights."""
    from ray_rl.app.workers import engines_of, teams_of, transfer_of
    from ray_rl.cluster.engines.weights import RayWeights
    from ray_rl.cluster.session import ray_session
    from ray_rl.cluster.start import started_workers
    from ray_rl.planner.plan import plan

    config = config_of(folder, scratch, backend)
    layout = plan(config)
    folders, versions = dict.fromkeys(layout.workers, (folder,)), iter(range(1, 10_000))
    with ray_session(config.cluster.address, layout):
        async with started_workers(
            layout,
            teams_of(config, layout, folders),
            engines_of(config, layout, folders),
            cluster=config.cluster,
            logs=scratch / backend,
            note=print,
        ) as workers:
            sent = next(m for m in await workers.weights.publish(next(versions)) if m.name == "sync/bytes")
            found = [await timed(lambda: workers.weights.publish(next(versions)))]
            if also_one_by_one:
                await workers.actor.team.all(gather_one_by_one)
                alone = replace(transfer_of(config), bucket_bytes=0)
                slow = RayWeights(alone, workers.actor, workers.engines, turns=workers.turns)
                await slow.join(*await workers.actor.meeting_place())
                found.append(await timed(lambda: slow.publish(next(versions))))
    return found, int(sent.value)


async def plain_copy(size: int, *, fresh: bool) -> list[float]:
    """From one buffer to another with all threads: memory that is there already, or that the kernel gives out first."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)

    async def copy() -> None:
        if fresh:
            source.clone()
        else:
            target.copy_(source)

    return await timed(copy)


def main() -> None:
    from ray_rl.cluster.environment import prepare_environment
    from ray_rl.models.packaged import resolve_model

    prepare_environment(local=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, logs = resolve_model(MODEL), Path(scratch)
        (shared,), size = asyncio.run(publishes(folder, logs, "shared_memory", also_one_by_one=False))
        (bucketed, alone), _ = asyncio.run(publishes(folder, logs, "gloo", also_one_by_one=True))
        seconds = {
            "publish (shared memory)": shared,
            "through sockets, in buckets": bucketed,
            "through sockets, one parameter at a time": alone,
            "plain copy into fresh memory": asyncio.run(plain_copy(size, fresh=True)),
            "plain copy into warm memory": asyncio.run(plain_copy(size, fresh=False)),
        }
    base = statistics.median(shared)
    table = Table(
        title=f"Publish of {size / 2**20:.0f} MiB: ZeRO-3, {WORKERS} workers, {ENGINES} engines, {ROUNDS} rounds"
    )
    for column in ("what", "median s", "least s", "most s", "GB/s", "against a publish"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, each in seconds.items():
        middle = statistics.median(each)
        table.add_row(
            what,
            f"{middle:.3f}",
            f"{min(each):.3f}",
            f"{max(each):.3f}",
            f"{size / middle / 1e9:.2f}",
            f"{middle / base:.2f}x",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
