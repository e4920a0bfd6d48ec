"""Kills a whole session at one exact point; Python runs this file at its start where the folder is on PYTHONPATH.

The point is JSON in the variable KILL_AT, and every process of the session waits for it: the driver, Ray's workers and
vLLM's processes. Two kinds, neither of which needs anything in the product:

    {"event": "os.rename", "path": "/config.yaml$", "count": 1}   before an operation on a file, by audit event
    {"call": "ray_rl.metrics.run:Run.log", "count": 2, "when": "before"}   before or after a call of a function

With "alone", the path of a file that does not exist, only the process that reaches the point is killed, and only the
first one: it makes the file. Instead of one point there may be a list of them.
"""

import functools
import importlib.abc
import importlib.util
import inspect
import json
import os
import re
import signal
import sys
from pathlib import Path

VARIABLE = "KILL_AT"


def kill_session() -> None:
    """SIGKILL for every process of this session, the leader first and this one last."""
    session, found = os.getsid(0), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            its_session = int(stat.read_text().rpartition(")")[2].split()[3])
        except OSError:
            continue
        if its_session == session:
            found.append(int(stat.parent.name))
    for pid in sorted(found, key=lambda pid: (pid == os.getpid(), pid != session)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def kill_first(mark: str) -> None:
    """SIGKILL for this process, unless another one made the file before."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Kills when it is passed for the n-th time in this process."""

    def __init__(self, count: int, mark: str | None) -> None:
        self._left, self._mark = count, mark

    def passed(self) -> None:
        self._left -= 1
        if self._left == 0:
            if self._mark is None:
                kill_session()
            else:
                kill_first(self._mark)


def watch_files(event: str, path: str, countdown: Countdown) -> None:
    pattern = re.compile(path)

    def hook(name: str, arguments: tuple) -> None:
        if name != event:
            return
        # A rename is known by where it goes to.
        at = arguments[1] if name in {"os.rename", "shutil.copyfile"} else arguments[0]
        if isinstance(at, str | bytes | os.PathLike) and pattern.search(os.fsdecode(at)):
            countdown.passed()

    sys.addaudithook(hook)


class WatchCall(importlib.abc.MetaPathFinder):
    """Wraps a function when its module is imported."""

    def __init__(self, call: str, when: str, countdown: Countdown) -> None:
        self._module, _, self._name = call.partition(":")
        self._when, self._countdown = when, countdown
        self._is_found = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self._module or self._is_found:
            return None
        self._is_found = True
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_wrap(module: object) -> None:
            execute(module)
            self._wrap(module)

        spec.loader.exec_module = execute_and_wrap
        return spec

    def _wrap(self, module: object) -> None:
        *owners, name = self._name.split(".")
        owner = functools.reduce(getattr, owners, module)
        function = getattr(owner, name)

        def before() -> None:
            if self._when == "before":
                self._countdown.passed()

        def after() -> None:
            if self._when == "after":
                self._countdown.passed()

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapped(*args: object, **options: object) -> object:
                before()
                result = await function(*args, **options)
                after()
                return result
        else:

            @functools.wraps(function)
            def wrapped(*args: object, **options: object) -> object:
                before()
                result = function(*args, **options)
                after()
                return result

        setattr(owner, name, wrapped)


def install(point: dict) -> None:
    countdown = Countdown(point.get("count", 1), point.get("alone"))
    if "event" in point:
        watch_files(point["event"], point["path"], countdown)
    else:
        sys.meta_path.insert(0, WatchCall(point["call"], point["when"], countdown))


if VARIABLE in os.environ:
    points = json.loads(os.environ[VARIABLE])
    for each in points if isinstance(points, list) else [points]:
        install(each)
