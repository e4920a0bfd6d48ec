"""The Ray actor of every worker. It holds one object and runs functions on it.

Functions are sent as objects: `await team.all(Trainer.update, batch)`. So a method is written once, in the class of the
held object, and type checkers see its arguments and its result at the call.
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
from ray_rl.imports import collect_as_usual, collect_less
from ray_rl.metrics.modes import open_file
from ray_rl.metrics.output import unbreakable

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

HEARTBEAT = "heartbeat"
"""Concurrency group of Ray, which gives the heartbeat a thread of its own."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings of a worker's process, applied before it imports heavy libraries."""

    logs: str
    """Folder of the log files."""
    threads: int
    """Threads of the process on CPU."""
    environment: Mapping[str, str]
    """Variables to set."""

    def enter(self, name: str) -> None:
        """Makes this process the worker `name`: sets its variables, and sends its output to its own log file."""
        os.environ.update(self.environment, OMP_NUM_THREADS=str(self.threads))
        tempfile.tempdir = None  # Ray has already used it, with the old TMPDIR
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
    """A process with a name, which is also its title in `ps`, and a log file of its own."""

    def __init__(self, setting: Setting, name: str) -> None:
        type(self).__name__ = name  # Ray makes the title from it; each actor has a process of its own
        self._held: Any = None
        """The object; None until `hold`: before it, only functions that ignore the object can run."""
        setting.enter(name)
        collect_less()  # Ray imports the modules of the object before it calls `hold`.


class Shell(_Named, Generic[T]):
    """Runs functions one after the other, in the order of the calls, and answers heartbeats at any time."""

    def hold(self, build: Callable[[], T]) -> None:
        """Builds the object. The modules of `build` are imported here, in the process that `Setting.enter` prepared."""
        collect_as_usual()
        self._held = build()

    def run(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls a function, such as a method of the object's class, with the object as its first argument."""
        return method(self._held, *args, **kwargs)

    @ray.method(concurrency_group=HEARTBEAT)
    def heartbeat(self) -> None:
        """Returns immediately unless the process hangs, even while the other thread computes."""


class AsyncShell(_Named, Generic[T]):
    """Runs coroutine functions concurrently on one event loop."""

    async def hold(self, build: Callable[[], Awaitable[T]]) -> None:
        """Builds the object, as `Shell.hold`."""
        collect_as_usual()
        self._held = await build()

    async def run(self, method: Callable[Concatenate[T, P], Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Awaits a function of the object, as `Shell.run`."""
        return await method(self._held, *args, **kwargs)


def free_address(_: object) -> tuple[str, int]:
    """Returns the address of this node and a free port, where other workers can meet this one."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, probe.getsockname()[1]


class Worker(Generic[T]):
    """The driver's handle of one shell. It wraps Ray's handle, which does not know the type of the object."""

    def __init__(self, name: str, actor: Any) -> None:
        """Wraps Ray's handle of a `Shell` or an `AsyncShell`; a name is, for example, "actor-0"."""
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
        """Starts a call. `Team` and `EngineProcess` wait for it and know the type of its result."""
        run = self._actor.run.options(name=f"{self.name}.{method.__name__}")  # shown as the title of the process
        ref: ray.ObjectRef[Any] = run.remote(method, *args, **kwargs)
        return ref

    def heartbeat(self) -> ray.ObjectRef[None]:
        """Starts `Shell.heartbeat`."""
        ref: ray.ObjectRef[None] = self._actor.heartbeat.remote()
        return ref

    def kill(self) -> None:
        """Kills the process, a stopped one too."""
        ray.kill(self._actor)
