"""Checks that a user's function can be imported, in a process with a time limit: its module may exit or hang."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from ray_rl.errors import ConfigError, SandboxError
from ray_rl.isolation.worker import START_TIMEOUT_S, Worker


def check_function(
    path: str,
    *,
    key: str,
    check: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> None:
    """Checks in a separate process that a user's function can be imported, and that it passes one of our checks.

    Args:
        path: `package.module:function`.
        key: the key of the configuration, for the message.
        check: import path of `check(path, **kwargs)`, which raises an error if something is wrong; None only imports.
        kwargs: further keywords of the check.
        timeout_s: limit for the import, and for the check.

    Raises:
        ConfigError: no such module or function; or the module raises, exits or hangs, with its file and line; or the
            check raised the error, or called the function, which raised, exited or hung.
    """
    remedy = "correct the module, which is imported before the run starts"
    with closing(Worker(start_timeout_s=timeout_s)) as worker:
        try:
            worker.load(path)
            if check is not None:
                remedy = "correct the function, or what it is given"
                worker.call(check, args=[path], kwargs=kwargs, timeout_s=timeout_s, named="called as in training, it")
        except ConfigError as error:
            raise ConfigError(f"{key}={error}") from error
        except (SandboxError, TimeoutError) as error:
            raise ConfigError(f"{key}={path}: {error}; {remedy}") from error
