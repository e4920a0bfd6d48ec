"""Measures how fast this machine multiplies and copies, for `ray-rl plan --calibrate`. Imports torch.

`python -m ray_rl.preflight.rate_probe bfloat16 cuda` prints one JSON object, with operations or bytes per second.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable

import torch

from ray_rl.weight_sync.proof import digest

SECONDS = 1.0
"""Least time of a measurement."""
NARROW = 64
"""Rows of a product in decoding."""
KERNELS = 25
"""Kernels of a decoder layer."""
SIZES = {"cuda": (8192, 2**30), "cpu": (2048, 2**28)}
"""Side of the large matrices, and bytes of the copies, by kind of device."""
BLOCK = 2**20
"""Bytes that are sent or received together."""
WAIT_S = 30.0
"""Limit for the loopback connection."""


def measured(dtype: torch.dtype, kind: str) -> dict[str, float]:
    """Returns operations, bytes and layers per second of this machine."""
    side, size = SIZES[kind]
    device = torch.device(kind)
    square = torch.randn(side, side, device=device).to(dtype)
    narrow, small = square[:NARROW].contiguous(), torch.randn(NARROW, device=device)
    block = torch.zeros(size, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    found = {
        "products": 2 * side**3 / seconds_of(lambda: square @ square, kind),
        "narrow_products": 2 * NARROW * side**2 / seconds_of(lambda: narrow @ square, kind),
        "copies": 2 * size / seconds_of(lambda: other.copy_(block), kind),
        "digests": size / seconds_of(lambda: digest(block), kind),
        "layer_s": KERNELS * seconds_of(lambda: small.add(1), kind),
    }
    if kind == "cpu":
        return found | {"loopback": loopback(size)}
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    found["to_host"] = size / seconds_of(lambda: pinned.copy_(block), kind)
    if torch.cuda.device_count() > 1:
        far = torch.empty_like(block, device="cuda:1")
        found["between_gpus"] = size / seconds_of(lambda: far.copy_(block), kind)
    return found


def seconds_of(work: Callable[[], object], kind: str) -> float:
    """Returns the seconds of a call, as the mean of the calls of a second after one that warms up."""

    def finish() -> None:
        if kind == "cuda":
            torch.cuda.synchronize()

    work()
    finish()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        for _ in range(1 + calls):
            work()
        calls += 1 + calls
        finish()
    return (time.perf_counter() - started) / calls


def loopback(size: int) -> float:
    """Returns the bytes per second of a connection of this machine with itself.

    Raises:
        OSError: not everything arrived.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        sender = threading.Thread(target=_send, args=(server.getsockname(), size), daemon=True)
        started, arrived = time.perf_counter(), 0
        sender.start()
        receiver, _ = server.accept()  # bound: the timeout of the server
        buffer = bytearray(BLOCK)
        with receiver:
            receiver.settimeout(WAIT_S)
            while count := receiver.recv_into(buffer):
                arrived += count
        seconds = time.perf_counter() - started
    if arrived != size:
        raise OSError(f"of {size} bytes over the loopback connection, {arrived} arrived")
    return size / seconds


def _send(address: tuple[str, int], size: int) -> None:
    block = bytes(BLOCK)
    with socket.create_connection(address, timeout=WAIT_S) as connection:
        for _ in range(size // BLOCK):
            connection.sendall(block)


def main() -> None:
    """Measures in the dtype, on the kind of device, that the command line names."""
    dtype, kind = sys.argv[1:]
    sys.stdout.write(json.dumps(measured(getattr(torch, dtype), kind)) + "\n")


if __name__ == "__main__":
    main()
