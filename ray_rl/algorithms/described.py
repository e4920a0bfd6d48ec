"""Describes what a function returned, for the error that refuses it."""

from typing import Any

from torch import Tensor


def described(returned: Any) -> str:
    """Returns words for a value: the dtype and shape of a tensor, each part of a tuple, else the type."""
    if isinstance(returned, Tensor):
        return f"a tensor of {returned.dtype} with the shape {tuple(returned.shape)}"
    if isinstance(returned, tuple):
        return f"({', '.join(described(part) for part in returned)})"
    return f"a {type(returned).__name__}"
