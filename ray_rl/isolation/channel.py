"""Numbered, length-prefixed messages over a socket, bounded by a deadline. Loads the standard library only."""

import socket
import struct
import time

_HEADER = struct.Struct("!QQ")
_CHUNK_BYTES = 1 << 20


def send(channel: socket.socket, payload: bytes, *, number: int, deadline_s: float | None = None) -> None:
    """Sends one message.

    Args:
        channel: stream socket; its timeout is changed.
        payload: at most 2**64 - 1 bytes.
        number: the number of the request, and of the replies to it.
        deadline_s: a time of `time.monotonic`; None waits without a limit.

    Raises:
        TimeoutError: the deadline passed.
        OSError: the other side has closed.
    """
    channel.settimeout(_remaining_s(deadline_s))
    channel.sendall(_HEADER.pack(number, len(payload)) + payload)


def receive(channel: socket.socket, *, deadline_s: float | None = None) -> tuple[int, bytes]:
    """Returns the number and the payload of the next message.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other side closed.
    """
    number, length = _HEADER.unpack(_exactly(channel, _HEADER.size, deadline_s))
    return number, _exactly(channel, length, deadline_s)


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
