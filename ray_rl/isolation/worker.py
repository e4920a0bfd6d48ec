"""A reusable worker process: calls that raise, hang or crash cannot hurt the process that makes them.

Not `multiprocessing`: fork is unsafe under the driver's threads, and spawn runs the parent's main module again, which
may load torch. Not a jail either: it bounds time and isolates crashes, and trusts the function with files and network.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from ray_rl import errors
from ray_rl.errors import NotLoaded, ProcessDied, SandboxClosed, SandboxError
from ray_rl.isolation.channel import receive, send
from ray_rl.isolation.family import MARK, kill_family
from ray_rl.isolation.prints import Prints

START_TIMEOUT_S = 120.0
"""Limit for importing the module of a function, once per process: sympy and reasoning_gym take seconds when busy."""

EXIT_S = 1.0
"""How long a child may take to end after it was killed or has closed its socket."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment of a process with a memory limit: one thread per core would use up the limit with stacks."""


class _NotStarted(ProcessDied):
    """The process ended before it received the request."""


class Worker:
    """One child process, started at the first call and restarted after a call that ended it. Thread-safe.

    Calls run one at a time, in the order in which they were submitted.
    """

    def __init__(self, *, memory_bytes: int | None = None, start_timeout_s: float = START_TIMEOUT_S) -> None:
        """Makes a worker without a process; the first call starts it.

        Args:
            memory_bytes: limit of the child's address space, for functions that run what a policy wrote; None for no
                limit.
            start_timeout_s: limit for importing a module.
        """
        # The child asks to die with the *thread* that started it (prctl(2)): that one must live as long as the worker.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-rl-sandbox")
        self._memory_bytes = memory_bytes
        self._start_timeout_s = start_timeout_s
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._prints: Prints | None = None
        self._number = 0
        self._loaded: set[str] = set()
        self._submitting = threading.Lock()
        self._is_closed = False

    def call(self, function: str, *, timeout_s: float, **options: Any) -> Any:
        """Returns the result of `submit`.

        Raises:
            TimeoutError: the limit passed; the child was killed, the next call starts another.
            UserError: the function raised it.
            NotLoaded: a module could not be imported.
            ProcessDied: the child ended during the call.
            SandboxError: the function raised (its traceback is a note), or the worker was closed.
        """
        try:
            # bound: this call and those queued before it have limits
            return self.submit(function, timeout_s=timeout_s, **options).result()
        except CancelledError as error:
            raise SandboxClosed(f"{function} was not called: its worker was closed") from error

    def submit(
        self,
        function: str,
        *,
        timeout_s: float,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        convert: tuple[str, Mapping[str, Any]] | None = None,
        load: Sequence[str] = (),
        named: str | None = None,
    ) -> Future[Any]:
        """Runs `function(*args, **kwargs)` in the child. The future raises the same errors as `call`.

        A child that died between two calls is replaced without an error.

        Args:
            function: import path, `package.module:function`.
            timeout_s: limit for the call alone; importing and waiting for earlier calls do not count.
            args: positional arguments; they, the keywords and the result are pickled.
            kwargs: keyword arguments.
            convert: import path and keywords of a function that is applied to the result in the child, before it is
                pickled.
            load: import paths of functions that the call needs, imported before its limit begins.
            named: the name of the function in error messages; its import path if None.

        Raises:
            SandboxClosed: the worker is closed.
        """
        paths = (function, *load, *(() if convert is None else (convert[0],)))
        request = ("call", function, tuple(args), dict(kwargs or {}), convert)
        with self._submitting:
            if self._is_closed:
                raise SandboxClosed(f"{function} was not called: its worker is closed")
            return self._thread.submit(self._call, paths, request, named or function, timeout_s)

    def load(self, path: str) -> None:
        """Imports the module of a function in the child.

        Raises:
            UserError: no such module or function.
            NotLoaded: the module raised, exited or hung.
        """
        with self._submitting:
            if self._is_closed:
                raise SandboxClosed(f"{path} was not imported: its worker is closed")
            call = self._thread.submit(self._load, path)
        try:
            call.result()  # bound: this call and those queued before it have limits
        except CancelledError as error:
            raise SandboxClosed(f"{path} was not imported: its worker was closed") from error

    def close(self) -> None:
        """Kills the child. Calls in flight and waiting calls fail immediately, so that many hanging calls end quickly.

        No call may follow.
        """
        with self._submitting:
            self._is_closed = True
            self._thread.shutdown(wait=False, cancel_futures=True)
        process = self._process
        if process is not None:
            kill_family(process.pid, self._mark)
        self._thread.shutdown()
        self._stop()

    @property
    def is_lost(self) -> bool:
        """Whether no call can succeed any more: never, because another process replaces one that died."""
        return False

    @property
    def pid(self) -> int | None:
        """The process id of the child; None if it does not run."""
        return None if self._process is None else self._process.pid

    def _call(self, paths: Sequence[str], request: tuple[Any, ...], doing: str, timeout_s: float) -> Any:
        try:
            return self._loaded_call(paths, request, doing, timeout_s)
        except _NotStarted:
            return self._loaded_call(paths, request, doing, timeout_s)

    def _loaded_call(self, paths: Sequence[str], request: tuple[Any, ...], doing: str, timeout_s: float) -> Any:
        for path in paths:
            self._load(path)
        return self._exchange(request, doing, timeout_s)

    def _load(self, path: str) -> None:
        if path in self._loaded:
            return
        try:
            self._exchange(("load", path), f"importing {path}", self._start_timeout_s)
        except (SandboxClosed, _NotStarted):
            raise
        except TimeoutError as error:
            raise NotLoaded(str(error)) from error
        except SandboxError as error:
            failure = NotLoaded(str(error))
            for note in vars(error).get("__notes__", ()):
                failure.add_note(note)
            raise failure from error
        self._loaded.add(path)

    def _exchange(self, request: tuple[Any, ...], doing: str, limit_s: float) -> Any:
        payload = pickle.dumps(request)
        channel = self._channel or self._start()
        if self._is_closed:  # after the start: `close` kills what it sees
            raise SandboxClosed(f"{doing} was ended: its worker was closed")
        self._number += 1
        if self._prints is not None:
            self._prints.allow_call()
        deadline_s = time.monotonic() + limit_s
        has_arrived, reply = False, b""
        try:
            send(channel, payload, number=self._number, deadline_s=deadline_s)
            while not reply:
                number, received = receive(channel, deadline_s=deadline_s)
                if number == self._number:  # and not one of an earlier call, by a child that its function forked
                    has_arrived, reply = True, received
        except TimeoutError as error:
            self._stop()
            raise TimeoutError(f"{doing} did not return within {limit_s:g} s; its process was killed") from error
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self._stop()
            if self._is_closed:
                raise SandboxClosed(f"{doing} was ended: its worker was closed") from error
            raise (ProcessDied if has_arrived else _NotStarted)(
                f"{doing} ended its process with exit code {code}; "
                "-9 is most often the kernel out of memory, -11 a crash in native code"
            ) from error
        return _outcome(reply, doing)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        # The child finds what we find; its functions' prints must not mix with the driver's standard output.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        limited = {} if self._memory_bytes is None else ONE_THREAD
        numbers = (theirs.fileno(), os.getpid(), self._memory_bytes or 0)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray_rl.isolation.child", *map(str, numbers)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **limited, "PYTHONPATH": path, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        assert process.stdout is not None, "asked for above"
        self._prints = Prints(process.stdout)
        self._process, self._channel = process, ours
        return ours

    def _exit_code(self) -> int | None:
        """Returns the exit code of a child that is ending: its socket closes slightly before its exit code is known."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout=EXIT_S)
        except subprocess.TimeoutExpired:
            return None

    def _stop(self) -> None:
        """Kills the child with all it started."""
        process, channel, prints = self._process, self._channel, self._prints
        self._process, self._channel, self._prints = None, None, None
        self._loaded.clear()
        if process is None or channel is None:
            return
        channel.close()
        kill_family(process.pid, self._mark)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, and dies when that lets it
            process.wait(timeout=EXIT_S)
        if prints is not None:
            prints.close()


def _outcome(reply: bytes, doing: str) -> Any:
    """Returns the value in a child's answer.

    Raises:
        UserError: its function raised it.
        SandboxError: its function raised something else.
    """
    kind, first, *more = pickle.loads(reply)  # trusted: as trusted as the function that returned it
    if kind == "value":
        return first
    if kind == "refused":
        raise vars(errors)[first](*more)
    failure = SandboxError(f"{doing} raised {first}")
    for note in more:
        failure.add_note(note)
    raise failure
