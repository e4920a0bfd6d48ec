"""Import paths, `package.module:function`, by which users name their own reward and data functions."""

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_rl.errors import ConfigError


def import_function(path: str) -> Callable[..., Any]:
    """Returns the function that `package.module:function` names. The working folder is on the import path.

    Exceptions that the module itself raises during the import are not caught: the traceback is the best explanation.
    A user's module may also exit or hang: import it only in a worker process (`ray_rl.isolation.checking`).

    Raises:
        ConfigError: no such module or function, or it cannot be called.
    """
    module_name, _, name = path.partition(":")
    folder = _working_folder()
    if folder is not None and "" not in sys.path and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        place = users_place(error)
        if module_name.endswith(".py"):
            raise ConfigError(
                f"{path}: write the module without .py: {module_name.removesuffix('.py')}:{name}"
            ) from error
        raise ConfigError(
            f"{path}: no module named {error.name!r} on the import path, which starts at {folder}"
            f"{f' (imported at {place})' if place else ''}; run from the folder with the module, or install its package"
        ) from error
    if name not in vars(module):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        found = ", ".join(functions) or "no functions"
        raise ConfigError(f"{path}: {module_name} has no {name!r}; it has {found}; correct the name")
    function = vars(module)[name]
    if not callable(function):
        raise ConfigError(f"{path}: a {type(function).__name__}, which cannot be called; name a function")
    return function  # type: ignore[no-any-return]


def _working_folder() -> str | None:
    """Returns the working folder; None if it was deleted, for example by a function that works in a temporary one."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def users_place(error: BaseException) -> str | None:
    """Returns the file and line in the user's code that raised: the last frame outside this package and libraries.

    Returns None if there is no such frame, and for a syntax error the place that does not parse.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(("<frozen", *_FOREIGN)) and not file.startswith(_PACKAGE):
            place = f"{file}:{line} in {frame.f_code.co_name}"
    return place


_PACKAGE = str(Path(__file__).parent.parent) + os.sep
_FOREIGN = tuple({sysconfig.get_paths()[key] + os.sep for key in ("stdlib", "platstdlib", "purelib", "platlib")})
