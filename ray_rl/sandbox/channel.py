"""Length-prefixed messages over a socket, each bounded by a deadline. Standard library only: the child loads it."""

import socket
import struct
import time

_HEADER = struct.Struct("!Q")
_CHUNK_BYTES = 1 << 20


def send(channel: socket.socket, payload: bytes, *, deadline_s: float | None = None) -> None:
    """Sends one message.

    Args:
        channel: stream socket; its timeout is changed.
        payload: at most 2**64 - 1 bytes.
        deadline_s: on the clock of `time.monotonic`; None waits for ever.

    Raises:
        TimeoutError: the deadline passed.
        OSError: the other side is gone.
    """
    channel.settimeout(_remaining_s(deadline_s))
    channel.sendall(_HEADER.pack(len(payload)) + payload)


def receive(channel: socket.socket, *, deadline_s: float | None = None) -> bytes:
    """The next message, whole.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other side closed.
    """
    (length,) = _HEADER.unpack(_exactly(channel, _HEADER.size, deadline_s))
    return _exactly(channel, length, deadline_s)


def _exactly(channel: socket.socket, count: int, deadline_s: float | None) -> bytes:
    received = bytearray()
    while len(received) < count:
        channel.settimeout(_remaining_s(deadline_s))
        chunk = channel.recv(min(count - len(received), _CHUNK_BYTES))
        if not chunk:
            raise EOFError("the other side closed the channel")
        received += chunk
    return bytes(received)


def _remaining_s(deadline_s: float | None) -> float | None:
    if deadline_s is None:
        return None
    remaining_s = deadline_s - time.monotonic()
    if remaining_s <= 0:  # settimeout(0) would mean "do not block", not "out of time"
        raise TimeoutError("the deadline passed")
    return remaining_s
