"""Output that never ends what writes it: a closed pipe, a terminal that is gone, a full disk.

What is printed is for a person; whoever reads it may have left. What must not be lost is in files of its own, whose
errors are not hidden (`metrics.jsonl`, samples, checkpoints).
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
"""A full disk or pipe may have room again; from any other error a stream does not recover."""


class Unbreakable:
    """A text stream whose `write` and `flush` do not raise: what cannot be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        """Wraps a stream.

        Args:
            stream: where to write. Once it is lost for good, its file descriptor leads to /dev/null, so that nobody
                else fails on it: C libraries, children, and Python's own flush at the end.
        """
        self._stream = stream
        self.has_lost_to_full_disk = False
        """Whether text was dropped because there was no room for it."""

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # Before __init__, as when it is copied.
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes what can be written; characters that the encoding lacks as backslash escapes."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes all of them."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Hands over what is buffered."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def finish(self) -> None:
        """The last flush. What does not fit now never will, and must not fail when the interpreter ends."""
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
    """A stream that never raises; itself if it is one."""
    return stream if isinstance(stream, Unbreakable) else cast("TextIO", Unbreakable(stream))


@contextmanager
def unbreakable_output() -> Iterator[Unbreakable]:
    """While the block lasts, standard output and standard error never raise; yields the former.

    A process that was started with one of its three streams closed gets /dev/null there: else the next file that is
    opened would be taken for it, and get what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free, which is this one.
    before = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w", encoding="utf-8") if None in before else None  # noqa: SIM115 - lives as long as we do
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
