"""Lets vLLM fork the process that computes from the worker that has imported vLLM, in place of spawning it.

vLLM forks outside of Ray. In a Ray actor and on CPU it spawns the process, which then imports everything again, for
five processor seconds. On CPU it does so to preload libraries and to bind threads to cores before OpenMP starts; our
engines bind none, and torch brings the library that would be preloaded. On GPU, the driver and its libraries keep state
in the worker that a child must not share: there the process is still spawned.

A child has only the thread that forked it, and must not use what other threads of the worker work with: `_Core.run`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any

DESCRIPTORS = Path("/proc/self/fd")
OTHERS = ("socket:", "anon_inode:")
"""Kinds of descriptors that a child gives up: connections, and what threads wait with. Its pipes to the worker stay."""


@contextmanager
def forked_core(leave: Callable[[], None]) -> Iterator[None]:
    """Makes vLLM fork its process within the block; the process calls `leave` first."""
    from vllm.v1.engine import utils

    class Core(_Core):
        leave_worker = staticmethod(leave)

    class Context(ForkContext):
        Process = Core

    starting: Any = utils
    spawning = starting.get_mp_context
    starting.get_mp_context = Context
    try:
        yield
    finally:
        starting.get_mp_context = spawning


class _Core(ForkProcess):
    """A process that leaves the connections of its parent alone."""

    leave_worker: Callable[[], None]

    def run(self) -> None:
        """Runs vLLM's function, without what belongs to the threads of the worker."""
        drop_connections()
        # Objects of the worker are never freed here: Ray's would take locks that its threads may have held.
        gc.freeze()
        self.leave_worker()
        super().run()


def drop_connections() -> None:
    """Replaces the sockets of this process by /dev/null, and what waits for them.

    Others learn from a closed connection that the worker has died, and it is closed when no process has it. The
    numbers stay in use: an object that closes one that it inherited must not close a new file of that number.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir(DESCRIPTORS)):
        with suppress(OSError):  # the listing has the descriptor that read it
            if os.readlink(DESCRIPTORS / str(descriptor)).startswith(OTHERS):
                os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)
