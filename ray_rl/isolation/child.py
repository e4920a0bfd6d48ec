"""The child process of a worker: `python -m ray_rl.isolation.child FD PARENT_PID MEMORY_BYTES`. Started by `worker`.

Requests are pickles of ("load", path) or ("call", path, args, kwargs, convert). Each is answered by two messages with
its number: an empty one when it has arrived, and the outcome, a pickle of ("value", value), ("refused", class, text)
for an error of `ray_rl.errors`, or ("raised", summary, traceback). Loads no heavy library, so that it starts in a
tenth of a second.
"""

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from ray_rl.errors import UserError
from ray_rl.isolation.channel import receive, send
from ray_rl.isolation.family import DEATH_SIGNAL
from ray_rl.isolation.importing import import_function, users_place

_REQUESTS_TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

SUMMARY_CHARACTERS = 2_000
TRACEBACK_CHARACTERS = 20_000
"""The most that is sent of an exception's text, and of its traceback: a function may put megabytes into them."""


class _Reply:
    """A context that pickles the outcome of its block: the value that was set, or any exception that was raised.

    This is a process boundary: an exception that passed it would end the worker, and its message would be lost. That
    includes `sys.exit` in a user's module. A child process that the block forked ends here.
    """

    def __init__(self) -> None:
        self.payload = b""
        self._pid = os.getpid()

    def value(self, value: Any) -> None:
        self.payload = pickle.dumps(("value", value))

    def __enter__(self) -> "_Reply":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if os.getpid() != self._pid:
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else error is not None)
        if error is None:
            return False
        if isinstance(error, UserError):
            self.payload = pickle.dumps(("refused", type(error).__name__, shortened(str(error), SUMMARY_CHARACTERS)))
            return True
        summary = shortened(_summary(error), SUMMARY_CHARACTERS)
        place = users_place(error)
        trace = shortened("".join(traceback.format_exception(error)), TRACEBACK_CHARACTERS)
        self.payload = pickle.dumps(("raised", f"{summary} at {place}" if place else summary, trace))
        return True


def _summary(error: BaseException) -> str:
    if isinstance(error, SyntaxError):  # whose own lines repeat the file
        return f"{type(error).__name__}: {error.msg}"
    return "".join(traceback.format_exception_only(error)).strip()


def shortened(text: str, limit: int) -> str:
    """Returns the beginning and the end of a text that is longer than a limit, in characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} [... {len(text) - limit} characters ...] {text[-(limit // 2) :]}"


def main() -> None:
    """Serves requests until the parent closes its end."""
    descriptor, parent, memory_bytes = (int(argument) for argument in sys.argv[1:4])
    _die_with(parent)
    _outlive_requests_to_stop()
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=lambda: _forked(channel))
    prints = sys.stdout  # A function may put another in its place, or close this one.
    while True:
        try:
            number, request = receive(channel)  # bound: waits for work as long as the parent lives
            send(channel, b"", number=number)  # bound: the parent kills the child at its own limit
        except (EOFError, ConnectionError):
            return
        with _Reply() as reply:
            # trusted: sent by the parent over a socket that no other process holds
            reply.value(_answer(*pickle.loads(request)))
        with contextlib.suppress(OSError, ValueError):
            prints.flush()
        send(channel, reply.payload, number=number)  # bound: the parent kills the child at its own limit


def _answer(
    kind: str,
    path: str,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    convert: tuple[str, Mapping[str, Any]] | None = None,
) -> Any:
    function = import_function(path)
    if kind == "load":
        return None
    returned = function(*args, **(kwargs or {}))
    return returned if convert is None else import_function(convert[0])(returned, **convert[1])


def _die_with(parent: int) -> None:
    """Asks the kernel to kill us when the parent dies, so that a hung function leaves no orphan behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def _outlive_requests_to_stop() -> None:
    """Ignores signals to stop. Ray, Slurm and shells send them to all processes of a job.

    The driver still needs this process to finish its step. The handler is not SIG_IGN, because processes that a
    function starts would inherit that.
    """
    for number in _REQUESTS_TO_STOP:
        signal.signal(number, lambda *_: None)


def _hold_signals() -> None:
    """Blocks the signals to stop during a fork, so that our handler, which ignores them, does not take the child's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS_TO_STOP)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS_TO_STOP)


def _forked(channel: socket.socket) -> None:
    """Closes the channel in a process that a function forked, so that it cannot answer in our place or keep it open.

    Restores the default signals: `multiprocessing.Pool` ends its workers with SIGTERM, possibly at once.
    """
    channel.close()
    for number in _REQUESTS_TO_STOP:
        signal.signal(number, signal.SIG_DFL)
    _release_signals()


if __name__ == "__main__":
    main()
