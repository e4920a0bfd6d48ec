"""The worker's own side: `python -m ray_rl.sandbox.child FD PARENT_PID`. Started by `ray_rl.sandbox.worker`.

Requests are pickles of ("load", path) or ("call", path, args, kwargs, convert); replies of ("value", value) or
("raised", summary, traceback). Loads nothing heavy of its own, so that it is up in a tenth of a second.
"""

import ctypes
import os
import pickle
import signal
import socket
import sys
import traceback
from types import TracebackType
from typing import Any

from ray_rl.sandbox.channel import receive, send
from ray_rl.sandbox.importing import import_function

_PR_SET_PDEATHSIG = 1


class _Reply:
    """The pickled outcome of its block: the value it set, or what it raised, whatever that was.

    This is a process boundary: an exception that got past it would end the worker and lose its message.
    """

    def __init__(self) -> None:
        self.payload = b""

    def value(self, value: Any) -> None:
        self.payload = pickle.dumps(("value", value))

    def __enter__(self) -> "_Reply":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        summary = "".join(traceback.format_exception_only(error)).strip()
        self.payload = pickle.dumps(("raised", summary, "".join(traceback.format_exception(error))))
        return True


def main() -> None:
    """Serves requests until the parent closes its end."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    _outlive_requests_to_stop()
    channel = socket.socket(fileno=descriptor)
    while True:
        try:
            request = receive(channel)
        except (EOFError, ConnectionError):
            return
        with _Reply() as reply:
            reply.value(_answer(*pickle.loads(request)))
        send(channel, reply.payload)


def _answer(
    kind: str, path: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, convert: str | None = None
) -> Any:
    function = import_function(path)
    if kind == "load":
        return None
    returned = function(*args, **(kwargs or {}))
    return returned if convert is None else import_function(convert)(returned)


def _die_with(parent: int) -> None:
    """Asks the kernel to kill us when the parent dies, so that a hung function leaves no orphan behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def _outlive_requests_to_stop() -> None:
    """Ray, Slurm and shells tell all processes of a job to stop: the driver then needs us to finish its step.

    Not SIG_IGN, which what a function starts would inherit.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda *_: None)


if __name__ == "__main__":
    main()
