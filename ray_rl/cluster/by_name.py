"""Functions and classes that only workers import. The driver names them in its calls, and imports no torch."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any


class ByName:
    """Stands for a function or a class of a module; its attributes stand for its attributes.

    A worker that gets it gets the original.
    """

    def __init__(self, module: str, name: str) -> None:
        """Makes the name of, for example, the class "Policy" of the module "ray_rl.cluster.held"."""
        self._module, self._name = module, name
        self.__name__ = name.rpartition(".")[2]

    def __getattr__(self, attribute: str) -> ByName:
        """Returns the name of an attribute, such as a method of a class."""
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return ByName(self._module, f"{self._name}.{attribute}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the original, in this process."""
        return original(self._module, self._name)(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return original, (self._module, self._name)


def original(module: str, name: str) -> Any:
    """Imports what a name stands for."""
    return reduce(getattr, name.split("."), importlib.import_module(module))
