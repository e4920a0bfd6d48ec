"""Proves that engines received what was sent: both sides digest every byte and compare before any engine serves.

The trainer digests each part of a parameter in its own memory, before it is copied for the transport. An engine digests
the received tensors before it loads them. This detects a flipped bit, a bucket that is missing or came twice, and a
publish that never reached an engine. It does not cover what happens after loading (packed kernels): see `audit`, and
`receivers.adapter` for adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import xxhash
from torch import Tensor

from ray_rl.errors import WeightMismatch
from ray_rl.rollout.receiver import MISMATCH
from ray_rl.weight_sync.messages import Digests

CHUNK_WORDS = 1 << 22
"""32-bit words that a GPU digests together: they take 32 MiB of memory in addition to the weights."""
TWICE = -1
"""Key, instead of a first element, for a parameter that arrived twice."""
SHOWN = 3
"""The most parameters that a message names."""


def digest(values: Tensor) -> str:
    """Returns the hexadecimal digest of the bytes of a tensor, in order.

    In host memory it is XXH3-128. On a GPU it is two sums over the little-endian 32-bit words w_i, padded with zeros,
    modulo 2^64: sum w_i and sum (2i + 1) w_i. The second sum changes with every change of a single word, because 2i + 1
    is odd and the change is smaller than 2^32. Neither protects against deliberate collisions, which nobody tries here.
    """
    flat = values.detach().contiguous().view(-1).view(torch.uint8)
    if not flat.is_cuda:
        return xxhash.xxh3_128_hexdigest(flat.numpy().data)
    return word_sums(flat)


def word_sums(flat: Tensor) -> str:
    """Returns the digest that is used on GPUs; see `digest`.

    Args:
        flat: uint8 [bytes], on any device.
    """
    total, weighted = 0, 0
    for start in range(0, flat.numel(), CHUNK_WORDS * 4):
        chunk = flat[start : start + CHUNK_WORDS * 4]
        if chunk.numel() % 4:
            chunk = torch.cat([chunk, chunk.new_zeros(-chunk.numel() % 4)])
        words = chunk.clone().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        first = start // 4
        odd = 2 * torch.arange(first, first + words.numel(), device=flat.device) + 1
        total += int(words.sum())
        weighted += int((words * odd).sum())  # int64 wraps, which is the sum modulo 2^64
    return f"{total % 2**64:016x}{weighted % 2**64:016x}"


def require_equal(sent: Digests, arrived: Digests) -> None:
    """Compares the digests of the trainer with those of an engine, which cover every received byte.

    Raises:
        WeightMismatch: a digest differs, is missing or was not expected; the message has the number and the names of
            such parameters.
    """
    wrong = [name for name in {**sent, **arrived} if sent.get(name) != arrived.get(name)]
    if sent and not wrong:
        return
    missing = sum(name not in arrived for name in sent)
    names = ", ".join(wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
    raise WeightMismatch(
        f"{MISMATCH}: {len(wrong)} of {len(sent)} parameters differ, {missing} did not arrive ({names})"
    )


class Arrivals:
    """The digests of everything that an engine's worker has received since the update began."""

    def __init__(self) -> None:
        """Makes an empty collection."""
        self._digests: Digests = {}

    def begin(self) -> None:
        """Begins a new update and forgets earlier digests."""
        self._digests = {}

    def add(self, tensors: Iterable[tuple[str, Tensor]], parts: Mapping[str, int]) -> None:
        """Digests tensors before they are loaded.

        Args:
            tensors: whole tensors with their names.
            parts: number of elements in a part, by parameter; the last part may have fewer.
        """
        for name, tensor in tensors:
            flat = tensor.detach().contiguous().view(-1)
            if name in self._digests:
                self._digests[name][TWICE] = "came twice"
                continue
            step = max(1, parts[name])
            self._digests[name] = {start: digest(flat[start : start + step]) for start in range(0, flat.numel(), step)}

    def prove(self, sent: Digests) -> None:
        """Calls `require_equal` with the received digests."""
        require_equal(sent, self._digests)
