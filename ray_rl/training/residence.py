"""Moves the tensors of a model between its device and the host, so that engines can use the memory of the device.

DeepSpeed's `offload_states` (0.19.8) moves Adam's moments under ZeRO-3 only for its own FusedAdam, does not exist
without ZeRO and in `BF16_Optimizer`, and leaves references behind that checkpoints read. Here the memory of a tensor is
freed in place: every view of it, whoever holds it, is valid again when the memory is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ray_rl.training.parts import PARTS, Part

SMALLEST_BYTES = 1024
"""Smaller blocks stay: it does not pay to move them, and checkpoints read the optimizer's count of steps."""

IsMoved = Callable[[torch.device], bool]


def of_accelerators(device: torch.device) -> bool:
    """Returns whether tensors of a device are moved: not those of the CPU, whose memory nobody waits for."""
    return device.type == "cuda"


class Residence:
    """The memory of one model on its device."""

    def __init__(self, find: Callable[[], Mapping[Part, Iterable[Tensor]]], *, is_moved: IsMoved = of_accelerators):
        """Makes the residence of a model that is on its device.

        Args:
            find: returns the tensors of the model, whenever it leaves: the first step of an optimizer makes new ones.
            is_moved: whether the tensors of a device are moved.
        """
        self._find, self._is_moved = find, is_moved
        self._away: dict[Part, dict[int, _Block]] = {part: {} for part in PARTS}
        self._kept: dict[int, list[Tensor]] = {}
        """Host memory of blocks that came back, by size, for the next time: to pin memory takes long."""

    def leave(self, *parts: Part) -> None:
        """Copies parts to the host and frees their memory on the device; a part that is away stays there.

        Call it between optimizer steps, while no rank holds gathered parameters.
        """
        found = {part: list(tensors) for part, tensors in self._find().items()}
        away = {key for blocks in self._away.values() for key in blocks}
        weights = {tensor.untyped_storage()._cdata for tensor in found["weights"]}
        for part in parts:
            for tensor in found[part]:
                storage = tensor.untyped_storage()
                key = storage._cdata
                is_other = part == "states" and key in weights
                is_empty = storage.nbytes() < SMALLEST_BYTES or storage.device.type == "meta"
                if is_empty or is_other or key in away or not self._is_moved(storage.device):
                    continue
                away.add(key)
                kept = self._kept.get(storage.nbytes())
                self._away[part][key] = _Block(storage, kept.pop() if kept else None)
        if self._away["weights"] or self._away["states"]:
            _release_cache()

    def come_back(self, *parts: Part) -> None:
        """Copies parts back to the device; a part that is there stays there."""
        for part in parts:
            while self._away[part]:
                _, block = self._away[part].popitem()
                host = block.come_back()
                self._kept.setdefault(host.numel(), []).append(host)

    def on_host(self, tensor: Tensor) -> Tensor:
        """Returns the tensor, or a view of its copy on the host while it is away."""
        key = tensor.untyped_storage()._cdata
        block = next((blocks[key] for blocks in self._away.values() if key in blocks), None)
        return tensor if block is None else block.view_of(tensor)


class _Block:
    """A block of memory that several tensors may view, while its content is on the host."""

    def __init__(self, storage: torch.UntypedStorage, host: Tensor | None) -> None:
        """Makes a copy on the host, in `host` if there is memory from the last time, and frees the block."""
        size, on_gpu = storage.nbytes(), storage.device.type == "cuda"
        self._storage, self._size = storage, size
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu) if host is None else host
        self._host.untyped_storage().copy_(storage, non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        storage.resize_(0)

    def come_back(self) -> Tensor:
        """Restores the block on its device, and returns the memory on the host."""
        self._storage.resize_(self._size)
        self._storage.copy_(self._host.untyped_storage())
        return self._host

    def view_of(self, tensor: Tensor) -> Tensor:
        """Returns the same part of the copy on the host as the tensor is of the block."""
        host = torch.empty(0, dtype=tensor.dtype).set_(self._host.untyped_storage())
        return host.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def model_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yields what a forward pass reads: parameters, ZeRO-3's shards of them, and buffers."""
    for parameter in module.parameters():
        yield parameter.data
        shard = parameter.__dict__.get("ds_tensor")
        if shard is not None:
            yield shard.data
    yield from module.buffers()


def tensors_within(root: object) -> Iterator[Tensor]:
    """Yields every tensor that an optimizer of torch or DeepSpeed holds, in attributes and containers, at any depth."""
    seen: set[int] = set()
    ahead: list[Any] = [root]
    while ahead:
        each = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
            if isinstance(each, nn.Parameter):
                ahead += [each.grad, *each.__dict__.values()]
        elif isinstance(each, Mapping):
            ahead += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            ahead += each
        elif _is_of_optimizer(each):
            ahead += vars(each).values()


def _is_of_optimizer(each: object) -> bool:
    if isinstance(each, nn.Module) or not type(each).__dictoffset__:  # the latter has no attributes of its own
        return False
    return isinstance(each, torch.optim.Optimizer) or type(each).__module__.partition(".")[0] == "deepspeed"


def _release_cache() -> None:
    """Returns what torch's allocator caches to the device: only then can another process have it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
