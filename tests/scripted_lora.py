"""vLLM's own manager of adapters and its layers with LoRA, over linear layers that have only sizes.

A worker has `layers.0.down`, cut by its inputs, and `layers.1.qk`, in which vLLM packs two layers, cut by its outputs.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from vllm.lora.layers import MergedColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA
from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager
from vllm.model_executor.layers.linear import RowParallelLinear

from ray_rl.weight_sync.receivers.adapter import AdapterWorker

RANK, MOST, SCALE = 2, 8, 0.5
"""The rank of the adapter, that of vLLM's buffers, and the factor of the product of the matrices."""
NAME = "base_model.model.layers.{}.lora_{}.weight"
ADAPTER = {
    NAME.format("0.down", "A"): (RANK, 32),
    NAME.format("0.down", "B"): (48, RANK),
    NAME.format("1.q", "A"): (RANK, 16),
    NAME.format("1.q", "B"): (8, RANK),
    NAME.format("1.k", "A"): (RANK, 16),
    NAME.format("1.k", "B"): (4, RANK),
}


class Row(RowParallelLinear):
    """A linear layer that is cut by its inputs, without weights."""

    def __init__(self, inputs, outputs, *, rank, world, device):
        nn.Module.__init__(self)
        self.input_size, self.input_size_per_partition, self.output_size = inputs, inputs // world, outputs
        self.tp_rank, self.tp_size = rank, world
        self.weight = torch.empty(0, device=device)


def make_manager(*, rank=0, world=1, device="cpu", dtype=torch.float32):
    """vLLM's manager in a worker of an engine with tensor parallelism."""
    config = SimpleNamespace(
        max_lora_rank=MOST, max_loras=1, max_cpu_loras=1, lora_dtype=dtype, fully_sharded_loras=False
    )
    down = RowParallelLinearWithLoRA(Row(32, 48, rank=rank, world=world, device=device))
    columns = SimpleNamespace(
        input_size=16,
        output_sizes=[8, 4],
        output_size_per_partition=12 // world,
        tp_rank=rank,
        tp_size=world,
        weight=torch.empty(0, device=device),
    )
    packed = MergedColumnParallelLinearWithLoRA(columns)
    for layer in (down, packed):
        layer.create_lora_weights(1, config)
    manager = object.__new__(LRUCacheLoRAModelManager)
    manager.model, manager.lora_config = SimpleNamespace(), config
    manager.modules = {"layers.0.down": down, "layers.1.qk": packed}
    manager.packed_modules = {"layers.1.qk": ["layers.1.q", "layers.1.k"]}
    manager.is_pooling_model = manager._enable_mixed_moe_lora_format = manager._enable_moe_shared_loras = False
    manager._registered_adapters = AdapterLRUCache(1, manager.deactivate_adapter)
    manager._active_adapters = AdapterLRUCache(1, manager._deactivate_adapter)
    manager.lora_index_to_id = [None]
    return manager


class Worker(AdapterWorker):
    """A worker of vLLM as its extension sees it."""

    def __init__(self, receiver, manager):
        self.weight_transfer_engine = receiver
        self.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager))

    def reset_lora_state(self):
        """As vLLM does at the end of an update."""
        self.model_runner.lora_manager._adapter_manager.remove_all_adapters()


def holds(manager, values, *, scale=SCALE):
    """Whether the buffers have these matrices, in the type of the buffers, and zeros around them."""
    down, packed = manager.modules.values()
    rank, world = down.tp_rank, down.tp_size
    columns = slice(rank * 32 // world, (rank + 1) * 32 // world)
    expected = [
        (down.lora_a_stacked[0], values[NAME.format("0.down", "A")][:, columns]),
        (down.lora_b_stacked[0], values[NAME.format("0.down", "B")], scale),
    ]
    for part, (layer, size) in enumerate([("1.q", 8), ("1.k", 4)]):
        rows = slice(rank * size // world, (rank + 1) * size // world)
        expected.append((packed.lora_a_stacked[part], values[NAME.format(layer, "A")]))
        expected.append((packed.lora_b_stacked[part], values[NAME.format(layer, "B")][rows], scale))
    return all(_has(*each) for each in expected) and manager.lora_index_to_id == [1]


def _has(buffer, matrix, scale=1.0):
    wanted = torch.zeros_like(buffer[0, 0])
    wanted[: matrix.shape[0], : matrix.shape[1]] = (matrix.to(buffer.dtype).float() * scale).to(buffer.dtype)
    return torch.equal(buffer[0, 0], wanted)
