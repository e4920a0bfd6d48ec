"""Keeps a process running when its output fails: a closed pipe, a closed terminal, a full disk.

Printed text is for a person who may have left. Data that must not be lost is in separate files, whose errors are not
hidden (`metrics.jsonl`, samples, checkpoints).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import UnsupportedOperation
from typing import Any, TextIO, cast

_MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN}
"""Errors that may pass: a full disk or pipe may have room again. After any other error a stream is lost."""


class Unbreakable:
    """A text stream whose `write` and `flush` do not raise: what cannot be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        """Wraps a stream.

        Args:
            stream: the stream. Once it is lost, its file descriptor points to /dev/null, so that other users of it do
                not fail: C libraries, child processes, and Python's own flush at exit.
        """
        self._stream = stream
        self.has_lost_to_full_disk = False
        """Whether text was dropped because there was no room for it."""

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # Before __init__, for example while it is copied.
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes as much as possible, with backslash escapes for characters that the encoding lacks."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes all lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flushes the buffer."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def finish(self) -> None:
        """Flushes for the last time. Text that still does not fit is dropped, so that the interpreter exits cleanly."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)
            _lead_to_nowhere(self._stream)

    def _drop(self, error: OSError | ValueError) -> None:
        if isinstance(error, OSError) and error.errno in _MAY_PASS:
            self.has_lost_to_full_disk |= error.errno != errno.EAGAIN
        else:
            _lead_to_nowhere(self._stream)


def unbreakable(stream: TextIO) -> TextIO:
    """Wraps a stream so that it never raises; returns an already wrapped stream unchanged."""
    return stream if isinstance(stream, Unbreakable) else cast("TextIO", Unbreakable(stream))


@contextmanager
def unbreakable_output() -> Iterator[Unbreakable]:
    """Makes standard output and standard error never raise during the block; yields standard output.

    If the process was started with one of its three streams closed, the stream becomes /dev/null. Otherwise the next
    opened file would get its number, and the printed text.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free number, which is this one.
    before = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w", encoding="utf-8") if None in before else None  # noqa: SIM115 - open to the end
    out, err = (unbreakable(stream or cast("TextIO", nowhere)) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield cast("Unbreakable", out)
    finally:
        for stream in (out, err):
            cast("Unbreakable", stream).finish()
        sys.stdout, sys.stderr = before


def _lead_to_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError, UnsupportedOperation):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
