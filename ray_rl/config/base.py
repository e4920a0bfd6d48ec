"""The base class of every section of the configuration."""

import ast
import inspect
import re
import textwrap
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST_INTEGER = 2**53
"""Largest whole number, so that floats, JSON and 64-bit integers can hold it, also after additions."""
LONGEST_S = 1e9
"""Longest time, 31 years: clocks and timers fail at much larger ones."""


class Config(BaseModel):
    """A frozen section without unknown keys, inf, nan or huge numbers. Errors quote the docstrings of its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _is_bounded(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses numbers that would fail hours later, in a timer or in a library with 64-bit integers."""
        if type(value) is int and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"must be at most {LARGEST_INTEGER}")
        if type(value) in (int, float) and str(info.field_name).endswith("_s") and value > LONGEST_S:
            raise ValueError(f"must be at most {LONGEST_S:g} seconds")
        if isinstance(value, str) and "\0" in value and info.field_name in ("dir", "path"):
            raise ValueError("must not have a NUL character")
        return value


@cache
def docstrings_of(owner: type[Config]) -> dict[str, str]:
    """Returns the docstrings of the fields that a class declares itself, by field.

    They are read from the source when an error quotes one. Pydantic's `use_attribute_docstrings` reads those of all
    classes at their import, which took a quarter of the processor time of `ray-rl --help`.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    found = {}
    for statement, after in pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                found[name] = inspect.cleandoc(text)
    return found


def _import_path(path: str) -> str:
    if re.fullmatch(_IMPORT_PATH, path):
        return path
    words = path.removeprefix("./")
    module, _, name = words.partition(":") if ":" in words else words.removesuffix(".py").rpartition(".")
    near = f"{module.removesuffix('.py').replace('/', '.')}:{name}"
    raise ValueError(
        "must be the path of a module, a colon, and the name of a function: "
        f"{near if re.fullmatch(_IMPORT_PATH, near) else 'my_rewards:my_function'}"
    )


_IMPORT_PATH = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"

ImportPath = Annotated[str, AfterValidator(_import_path)]
"""Import path of a function: `package.module:function`."""
