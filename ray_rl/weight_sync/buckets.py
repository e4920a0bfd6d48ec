"""Divides the stream of parameters into buckets with pure functions: sender and receivers compute the same buckets."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ray_rl.training.gather import ParameterSpec


def plan_buckets(specs: Sequence[ParameterSpec], *, capacity_bytes: int) -> list[list[ParameterSpec]]:
    """Returns buckets of as many consecutive parameters as fit; a larger parameter gets a bucket of its own."""
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
    """Returns the size of a bucket."""
    return sum(spec.bytes for spec in bucket)


def unpack(buffer: Tensor, bucket: Sequence[ParameterSpec]) -> list[tuple[str, Tensor]]:
    """Returns names and views into a flat uint8 buffer, in the order of the bucket.

    Offsets are multiples of the element size, because all parameters of a stream have one dtype.
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
    """A few flat buffers that are reused: a copy into a new 64 MiB allocation takes four times as long."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """Returns a uint8 buffer of exactly `size` bytes, in the memory of an earlier one if that is large enough."""
        for i, base in enumerate(self._free):
            if base.numel() >= size:
                return self._free.pop(i)[:size]
        return torch.empty(size, dtype=torch.uint8)

    def give(self, buffer: Tensor) -> None:
        """Takes a buffer back, when nothing reads or writes it any more."""
        base = buffer if buffer._base is None else buffer._base
        self._free.append(base)
        self._free.sort(key=Tensor.numel)
        del self._free[:-3]
