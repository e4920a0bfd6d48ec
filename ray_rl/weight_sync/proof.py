"""Proof that what arrived is what was sent: a digest of every byte on both sides, compared before any engine serves.

The trainer digests each part of a parameter out of its own memory, before it is copied for the transport; an engine
digests what it loads from, before it loads it. A flipped bit, a bucket that was left out or came twice, and a publish
that never reached an engine all show. What lies behind the load (an engine's packed kernels) does not: see `audit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import xxhash
from torch import Tensor

from ray_rl.errors import WeightMismatch
from ray_rl.rollout.receiver import MISMATCH

Digests = dict[str, dict[int, str]]
"""By parameter, then by the first element of each of its parts."""

CHUNK_WORDS = 1 << 22
"""32-bit words that are digested at once on a GPU: 32 MiB of memory beside the weights."""
TWICE = -1
"""In place of a first element."""
SHOWN = 3
"""Parameters that a message names."""


def digest(values: Tensor) -> str:
    """Hexadecimal digest of the bytes of a tensor, in order.

    XXH3-128 in host memory. On a GPU two sums over its little-endian 32-bit words w_i, zeros behind the end, modulo
    2^64: sum w_i and sum (2i + 1) w_i. The second alone changes with every change of a single word, as 2i + 1 is odd
    and the change smaller than 2^32. Neither guards against someone who wants a collision, and nobody here does.
    """
    flat = values.detach().contiguous().view(-1).view(torch.uint8)
    if not flat.is_cuda:
        return xxhash.xxh3_128_hexdigest(flat.numpy().data)
    return word_sums(flat)


def word_sums(flat: Tensor) -> str:
    """The digest of GPUs; see `digest`.

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


def merged(ranks: Iterable[Digests]) -> Digests:
    """The digests of all ranks of the trainer, each of which has parts of its own."""
    found: Digests = {}
    for digests in ranks:
        for name, parts in digests.items():
            found[name] = found.get(name, {}) | parts
    return found


def require_equal(sent: Digests, arrived: Digests) -> None:
    """Compares what the trainer has digested with what an engine has, which digests every byte of what came.

    Raises:
        WeightMismatch: anything differs, is missing, or came unasked; says how many parameters, and which.
    """
    wrong = [name for name in {**sent, **arrived} if sent.get(name) != arrived.get(name)]
    if sent and not wrong:
        return
    missing = sum(name not in arrived for name in sent)
    names = ", ".join(wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
    raise WeightMismatch(f"{MISMATCH}: {len(wrong)} of {len(sent)} parameters differ, {missing} never came ({names})")


class Arrivals:
    """What an engine's worker has received since its update began."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._digests: Digests = {}

    def begin(self) -> None:
        """A new update: what came before proves nothing."""
        self._digests = {}

    def add(self, tensors: Iterable[tuple[str, Tensor]], parts: Mapping[str, int]) -> None:
        """Digests tensors before they are loaded.

        Args:
            tensors: by name, whole.
            parts: elements of a part of each parameter; the last part may have fewer.
        """
        for name, tensor in tensors:
            flat = tensor.detach().contiguous().view(-1)
            if name in self._digests:
                self._digests[name][TWICE] = "came twice"
                continue
            step = max(1, parts[name])
            self._digests[name] = {start: digest(flat[start : start + step]) for start in range(0, flat.numel(), step)}

    def prove(self, sent: Digests) -> None:
        """See `require_equal`."""
        require_equal(sent, self._digests)
