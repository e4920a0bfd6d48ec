"""A reusable worker process: calls that raise, hang or crash cannot hurt the process that makes them.

Not `multiprocessing`: fork is unsafe under the driver's threads, and spawn runs the parent's main module again, which
may load torch. Not a jail either: it bounds time and isolates crashes, and trusts the function with files and network.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from ray_rl.errors import SandboxError
from ray_rl.sandbox.channel import receive, send

START_TIMEOUT_S = 120.0
"""For importing the module of a function, once per process: sympy and reasoning_gym take seconds on a busy machine."""

EXIT_S = 1.0
"""For a child that was killed, or has closed its socket, to be gone."""


class Worker:
    """One child process, started at the first call and again after one that killed it. Safe to call from any thread.

    Calls run one at a time, in the order they came.
    """

    def __init__(self) -> None:
        # The child asks to die with the *thread* that started it (prctl(2)): that one must live as long as the worker.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-rl-sandbox")
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._loaded: set[str] = set()
        self._submitting = threading.Lock()
        self._is_closed = False

    def call(
        self,
        function: str,
        *,
        timeout_s: float,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        convert: str | None = None,
    ) -> Any:
        """What `function(*args, **kwargs)` returns, computed in the child.

        Args:
            function: import path, `package.module:function`.
            timeout_s: limit for the call alone; importing and waiting for earlier calls do not count.
            args: positional arguments; they, the keywords and the result are pickled.
            kwargs: keyword arguments.
            convert: import path of a function applied to the result in the child, before it is pickled.

        Raises:
            TimeoutError: the limit passed; the child was killed, the next call starts another.
            SandboxError: the function raised (its traceback is a note), or the child died, or the worker was closed.
        """
        with self._submitting:
            if self._is_closed:
                raise SandboxError(f"{function} was not called: its worker is closed")
            call = self._thread.submit(self._call, function, timeout_s, tuple(args), dict(kwargs or {}), convert)
        try:
            return call.result()
        except CancelledError as error:
            raise SandboxError(f"{function} was not called: its worker was closed") from error

    def close(self) -> None:
        """Kills the child. Calls under way and waiting fail at once: many that hang would take long to end one by one.

        No call may follow.
        """
        with self._submitting:
            self._is_closed = True
            self._thread.shutdown(wait=False, cancel_futures=True)
        process = self._process
        if process is not None:
            _kill(process.pid)
        self._thread.shutdown()
        self._stop()

    @property
    def pid(self) -> int | None:
        """Of the child; None when none runs."""
        return None if self._process is None else self._process.pid

    def _call(
        self, function: str, timeout_s: float, args: tuple[Any, ...], kwargs: dict[str, Any], convert: str | None
    ) -> Any:
        for path in (function, convert):
            if path is not None and path not in self._loaded:
                self._exchange(("load", path), f"importing {path}", START_TIMEOUT_S)
                self._loaded.add(path)
        return self._exchange(("call", function, args, kwargs, convert), function, timeout_s)

    def _exchange(self, request: tuple[Any, ...], doing: str, limit_s: float) -> Any:
        payload = pickle.dumps(request)
        channel = self._channel or self._start()
        if self._is_closed:  # after the start: `close` kills what it sees
            raise SandboxError(f"{doing} was ended: its worker was closed")
        deadline_s = time.monotonic() + limit_s
        try:
            send(channel, payload, deadline_s=deadline_s)
            reply = receive(channel, deadline_s=deadline_s)
        except TimeoutError as error:
            self._stop()
            raise TimeoutError(f"{doing} did not return within {limit_s:g} s; its process was killed") from error
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self._stop()
            raise SandboxError(
                f"{doing} ended its process with exit code {code}; "
                "-9 is most often the kernel out of memory, -11 a crash in native code"
            ) from error
        outcome = pickle.loads(reply)  # as trusted as the function itself
        if outcome[0] == "value":
            return outcome[1]
        failure = SandboxError(f"{doing} raised {outcome[1]}")
        failure.add_note(outcome[2])
        raise failure

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        # The child finds what we find; its functions' prints must not mix with the driver's standard output.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray_rl.sandbox.child", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
            )
        self._channel = ours
        return ours

    def _exit_code(self) -> int | None:
        """Of a child that ends by itself; its socket is seen to close a moment before it can be waited for."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout=EXIT_S)
        except subprocess.TimeoutExpired:
            return None

    def _stop(self) -> None:
        """Kills the child with all it started."""
        process, channel = self._process, self._channel
        self._process, self._channel = None, None
        self._loaded.clear()
        if process is None or channel is None:
            return
        channel.close()
        _kill(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, and dies when that lets it
            process.wait(timeout=EXIT_S)


def _kill(pid: int) -> None:
    """Kills a child with all it started."""
    with contextlib.suppress(ProcessLookupError):  # it is gone, and started nothing that is left
        os.killpg(pid, signal.SIGKILL)
