"""Describes the engines of a run, from its configuration."""

from __future__ import annotations

from pathlib import Path

from ray_rl.catalog.weight_files import linear_layers
from ray_rl.config import RunConfig
from ray_rl.config.gpus import sharers_of_engines
from ray_rl.rollout.adapter import EngineAdapter
from ray_rl.rollout.engine import EngineSettings
from ray_rl.weight_sync.plugin import ADAPTER_WORKER
from ray_rl.weight_sync.transports import BACKENDS, Transport, transport_of


def policy_engine(config: RunConfig, folder: str, *, threads: int) -> EngineSettings:
    """Returns the settings of an engine of the policy; `threads` is the number of threads of its process on CPU."""
    rollout = config.rollout
    return EngineSettings(
        model=folder,
        dtype=config.model.dtype,
        context_tokens=config.data.max_prompt_tokens + config.most_tokens,
        on_cpu=config.cluster.accelerator == "cpu",
        tensor_parallel=rollout.tensor_parallel,
        max_sequences=rollout.max_sequences,
        gpu_memory_fraction=rollout.gpu_memory_fraction,
        kv_cache_gib=rollout.kv_cache_gib,
        enforce_eager=rollout.enforce_eager,
        trust_remote_code=config.model.trust_remote_code,
        threads=threads,
        transfer_backend=BACKENDS[transport(config)],
        adapter=engine_adapter(config, folder),
        on_publish=rollout.on_publish,
        sleep_level=rollout.sleep_level if sharers_of_engines(config) else None,
        timeout_s=rollout.timeout_s,
    )


def engine_adapter(config: RunConfig, folder: str) -> EngineAdapter | None:
    """Returns the adapter that engines of the policy get by itself; None if they get whole weights."""
    adapter = config.model.adapter
    if adapter is None or not config.publishes_adapters:
        return None
    targets = linear_layers(Path(folder)) if adapter.targets == "all-linear" else tuple(adapter.targets)
    return EngineAdapter(most_rank=adapter.engine_rank, scale=adapter.scale, targets=targets, worker=ADAPTER_WORKER)


def transport(config: RunConfig) -> Transport:
    """Returns how weights reach the engines."""
    return transport_of(config.weight_sync, config.cluster, is_shared=bool(sharers_of_engines(config)))
