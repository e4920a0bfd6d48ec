"""Checks that a user's function can be imported, in a process with a time limit: its module may exit or hang."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from ray_rl.errors import ConfigError, SandboxError
from ray_rl.isolation.worker import START_TIMEOUT_S, Worker


def check_function(path: str, *, key: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Checks in a separate process that a function can be imported.

    Args:
        path: `package.module:function`.
        key: the key of the configuration, for the message.
        timeout_s: limit for the import.

    Raises:
        ConfigError: no such module or function; or the module raises, exits or hangs, with its file and line.
    """
    with closing(Worker(start_timeout_s=timeout_s)) as worker:
        _checked(worker, path, key=key)


def check_call(
    path: str, check: str, *, key: str, kwargs: Mapping[str, Any], timeout_s: float = START_TIMEOUT_S
) -> None:
    """Imports a user's function and calls one of our checks with its path, both in a separate process.

    Args:
        path: the import path of the user's function.
        check: import path of `check(path, **kwargs)`, which raises an error if something is wrong.
        key: the key of the configuration, for the message.
        kwargs: further keywords of the check.
        timeout_s: limit for the import, and for the call.

    Raises:
        ConfigError: as `check_function`; or the check raised it, or called the function, which raised, exited or hung.
    """
    with closing(Worker(start_timeout_s=timeout_s)) as worker:
        _checked(worker, path, key=key)
        try:
            worker.call(check, args=[path], kwargs=kwargs, timeout_s=timeout_s, named="called as in training, it")
        except ConfigError as error:
            raise ConfigError(f"{key}={error}") from error
        except (SandboxError, TimeoutError) as error:
            raise ConfigError(f"{key}={path}: {error}; correct the function, or what it is given") from error


def _checked(worker: Worker, path: str, *, key: str) -> None:
    try:
        worker.load(path)
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from error
    except SandboxError as error:
        raise ConfigError(
            f"{key}={path}: {error}; correct the module, which is imported before the run starts"
        ) from error
