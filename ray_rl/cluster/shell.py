"""The Ray actor of every worker. It holds one object and runs the functions that it is sent on that object.

A function travels as what it is: `await team.all(Trainer.update, batch)`. Nothing is listed by name, so a method is
written once, in the class of the object, and type checkers see its arguments and its result at the call.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray

from ray_rl.cluster.environment import keep_freed_memory, quiet_libraries
from ray_rl.cluster.scratch import SEMAPHORES, name_semaphores
from ray_rl.metrics.modes import open_file
from ray_rl.metrics.output import unbreakable

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

HEARTBEAT = "heartbeat"
"""Concurrency group of Ray, which gives a method a thread of its own."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the process of a worker is told before it imports anything heavy."""

    logs: str
    """Folder of the log files."""
    threads: int
    """Threads of the process, on CPU."""
    environment: Mapping[str, str]
    """Variables to set."""

    def enter(self, name: str) -> None:
        """Makes this process the worker `name`: sets its variables, and sends its output to its own log file."""
        os.environ.update(self.environment, OMP_NUM_THREADS=str(self.threads))
        tempfile.tempdir = None  # what Ray asked for before
        if SEMAPHORES in self.environment:
            name_semaphores(self.environment[SEMAPHORES])
        on_cpu = self.environment.get("DS_ACCELERATOR") == "cpu"
        quiet_libraries(on_cpu=on_cpu)
        if on_cpu:
            keep_freed_memory()
        folder = Path(self.logs)
        folder.mkdir(parents=True, exist_ok=True)
        log = open_file(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        # A library that prints onto a full disk must not end the worker.
        sys.stdout, sys.stderr = unbreakable(sys.stdout), unbreakable(sys.stderr)


class _Named:
    """A process with a name, which is also its title in `ps`, and with its own log file."""

    def __init__(self, setting: Setting, name: str) -> None:
        type(self).__name__ = name  # Ray makes the title of it; each actor has a process of its own
        self._held: Any = None
        """The object; None until `hold`, when only functions that ignore it can run."""
        setting.enter(name)


class Shell(_Named, Generic[T]):
    """Runs functions one after the other, in the order of the calls, and answers heartbeats meanwhile."""

    def hold(self, build: Callable[[], T]) -> None:
        """Builds the object. The modules of `build` are imported here, in the process that `Setting.enter` prepared."""
        self._held = build()

    def run(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls a function, such as a method of the object's class, with the object as its first argument."""
        return method(self._held, *args, **kwargs)

    @ray.method(concurrency_group=HEARTBEAT)
    def heartbeat(self) -> None:
        """Returns at once unless the process hangs, whatever runs in the other thread."""


class AsyncShell(_Named, Generic[T]):
    """Runs coroutine functions concurrently on one event loop, for an object whose methods are coroutines."""

    async def hold(self, build: Callable[[], Awaitable[T]]) -> None:
        """As `Shell.hold`."""
        self._held = await build()

    async def run(self, method: Callable[Concatenate[T, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """As `Shell.run`."""
        return await method(self._held, *args, **kwargs)


def free_address(_: object) -> tuple[str, int]:
    """The address of this node, and a port that is free there now: where others can meet this worker."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, probe.getsockname()[1]


class Worker(Generic[T]):
    """The driver's handle of one shell. Nothing else touches Ray's handle, which does not know the object's type."""

    def __init__(self, name: str, actor: Any) -> None:
        """Takes over a shell.

        Args:
            name: Name of the worker, such as "actor-0".
            actor: Ray's handle of a `Shell` or an `AsyncShell`.
        """
        self.name = name
        self._actor = actor

    @classmethod
    def launch(cls, name: str, setting: Setting, options: Mapping[str, Any]) -> Worker[T]:
        """Starts a `Shell`, which holds nothing yet; `options` are Ray's."""
        kind: Any = ray.remote(concurrency_groups={HEARTBEAT: 1})  # type: ignore[call-overload]  # Ray's hints omit it
        return cls(name, kind(Shell).options(**options).remote(setting, name))

    @classmethod
    def launch_async(cls, name: str, setting: Setting, options: Mapping[str, Any]) -> Worker[T]:
        """Starts an `AsyncShell`, which holds nothing yet; `options` are Ray's."""
        kind: Any = ray.remote(AsyncShell)
        return cls(name, kind.options(**options).remote(setting, name))

    def hold(self, build: Callable[[], T] | Callable[[], Awaitable[T]]) -> ray.ObjectRef[None]:
        """Starts building the object."""
        ref: ray.ObjectRef[None] = self._actor.hold.options(name=f"{self.name}.hold").remote(build)
        return ref

    def submit(
        self, method: Callable[Concatenate[T, ...], Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> ray.ObjectRef[Any]:
        """Starts a call; `Team` and `EngineProcess` wait for it and know the type of its result."""
        run = self._actor.run.options(name=f"{self.name}.{method.__name__}")  # the process shows it as its title
        ref: ray.ObjectRef[Any] = run.remote(method, *args, **kwargs)
        return ref

    def heartbeat(self) -> ray.ObjectRef[None]:
        """Starts `Shell.heartbeat`."""
        ref: ray.ObjectRef[None] = self._actor.heartbeat.remote()
        return ref

    def kill(self) -> None:
        """Ends the process at once, a stopped one too."""
        ray.kill(self._actor)
