"""Computes the memory of a vLLM engine: how much remains for the KV cache, and how many sequences fit into it."""

from __future__ import annotations

from dataclasses import dataclass

from ray_rl.catalog.shapes import ModelShape
from ray_rl.config import RunConfig
from ray_rl.planner.activations import frozen_activations
from ray_rl.planner.adapters import Adapters
from ray_rl.planner.gpus import Gpu
from ray_rl.planner.memory import CONTEXT_BYTES, Bounds, Memory
from ray_rl.sizes import GIB, MIB

BATCH_TOKENS = 2048
"""Tokens of a forward pass: vLLM 0.32's default for `AsyncLLM`."""

GRAPH_BYTES = GIB
"""Memory of CUDA graphs: an allowance, not measured."""

SAMPLER_COPIES = 3
"""Float32 arrays of [sequences, V] in the sampler: logits, log-probabilities, and sorted or drawn values."""

RECEIVE_BUCKETS = 2
"""Buckets that an engine holds during a publish."""


@dataclass(frozen=True, slots=True)
class KvCache:
    """The memory that an engine has for keys and values."""

    total: float
    """Bytes on each of its GPUs; negative if the weights alone are too large."""
    token: float
    """Bytes of a token on each of its GPUs."""
    longest: int
    """Tokens of the longest sequence."""

    @property
    def sequences(self) -> int:
        """Sequences of full length that fit at the same time."""
        return max(0, int(self.total // (self.token * self.longest)))


def kv_token_bytes(shape: ModelShape, *, element: int, tensor_parallel: int) -> float:
    """Returns 2 e L kv / min(t, kv heads): with more GPUs than key heads, heads are copied."""
    return 2 * element * shape.layers * shape.kv / min(tensor_parallel, shape.kv_heads)


def engine_weights(config: RunConfig, shape: ModelShape) -> float:
    """Returns the bytes of weights on a GPU of an engine: its share of the model, and the room for adapters."""
    size, adapters = config.rollout.tensor_parallel, Adapters.of(config, shape)
    room = adapters.room(size) if adapters is not None and config.publishes_adapters else 0.0
    return Bounds(config).element * (shape.parameters / size + room)


def engine_memory(config: RunConfig, shape: ModelShape, gpu: Gpu) -> tuple[Memory, KvCache]:
    """Returns the memory of one GPU of an engine: its share of the weights, a forward pass, and the KV cache.

    The KV cache takes the rest of the memory that the engine may use.
    """
    bounds, rollout = Bounds(config), config.rollout
    size, element = rollout.tensor_parallel, bounds.element
    held = {"context": float(CONTEXT_BYTES), "weights": engine_weights(config, shape)}
    sampler = SAMPLER_COPIES * 4.0 * rollout.max_sequences * shape.vocabulary
    forward = {
        # Each GPU has its share of the heads and of the MLP, and the whole residual.
        "activations": frozen_activations(shape, tokens=max(BATCH_TOKENS, rollout.max_sequences), element=element),
        "logits": sampler,
    }
    if not rollout.enforce_eager:
        held["graphs"] = float(GRAPH_BYTES)
    layer = element * max(shape.layer_parameters, shape.embedding_parameters) / size
    sync = {"sync": RECEIVE_BUCKETS * config.weight_sync.bucket_mib * MIB + layer}
    used = sum(held.values()) + max(sum(forward.values()), sum(sync.values()))
    token = kv_token_bytes(shape, element=element, tensor_parallel=size)
    cache = KvCache(rollout.gpu_memory_fraction * gpu.memory_bytes - used, token, bounds.longest)
    held["KV cache"] = max(0.0, cache.total)
    return Memory("rollout", held, {"forward": forward, "sync": sync}), cache


def cpu_engine_memory(config: RunConfig, shape: ModelShape) -> tuple[Memory, KvCache]:
    """Returns the memory of each tensor-parallel process of a CPU engine, whose KV cache is `rollout.kv_cache_gib`."""
    bounds, rollout = Bounds(config), config.rollout
    size, element = rollout.tensor_parallel, bounds.element
    cache_bytes = rollout.kv_cache_gib * GIB
    held = {"weights": engine_weights(config, shape), "KV cache": cache_bytes}
    forward = {
        "activations": frozen_activations(shape, tokens=max(BATCH_TOKENS, bounds.longest), element=element),
        "logits": SAMPLER_COPIES * 4.0 * rollout.max_sequences * shape.vocabulary,
    }
    token = kv_token_bytes(shape, element=element, tensor_parallel=size)
    return Memory("rollout", held, {"forward": forward}), KvCache(cache_bytes, token, bounds.longest)
