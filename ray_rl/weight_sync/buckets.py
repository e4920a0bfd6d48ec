"""How the stream of parameters is cut into buckets. Pure, so that sender and receivers agree without talking."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ray_rl.training.gather import ParameterSpec


def plan_buckets(specs: Sequence[ParameterSpec], *, capacity_bytes: int) -> list[list[ParameterSpec]]:
    """Consecutive parameters, as many as fit; a parameter that is alone larger has a bucket of its own."""
    buckets: list[list[ParameterSpec]] = []
    used = 0
    for spec in specs:
        if not buckets or used + spec.bytes > capacity_bytes:
            buckets.append([])
            used = 0
        buckets[-1].append(spec)
        used += spec.bytes
    return buckets


def bucket_bytes(bucket: Sequence[ParameterSpec]) -> int:
    """Size of a bucket."""
    return sum(spec.bytes for spec in bucket)


def unpack(buffer: Tensor, bucket: Sequence[ParameterSpec]) -> list[tuple[str, Tensor]]:
    """Names and views into a flat uint8 buffer, in the order of the bucket.

    Offsets are multiples of the element size, as all parameters of a stream have one dtype.
    """
    views = []
    offset = 0
    for spec in bucket:
        flat = buffer[offset : offset + spec.bytes].view(getattr(torch, spec.dtype))
        assert flat.numel() == prod(spec.shape)
        views.append((spec.name, flat.view(spec.shape)))
        offset += spec.bytes
    return views


class BufferRing:
    """A few flat buffers, used again and again: fresh 64 MiB allocations cost four times as much as a warm copy."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """A uint8 buffer of exactly `size` bytes, the memory of an earlier one if any is large enough."""
        for i, base in enumerate(self._free):
            if base.numel() >= size:
                return self._free.pop(i)[:size]
        return torch.empty(size, dtype=torch.uint8)

    def give(self, buffer: Tensor) -> None:
        """Returns a buffer, when nothing reads or writes it any more."""
        base = buffer if buffer._base is None else buffer._base
        self._free.append(base)
        self._free.sort(key=Tensor.numel)
        del self._free[:-3]
