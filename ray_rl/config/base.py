"""What every part of the configuration shares."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST_INTEGER = 2**53
"""Seeds, sizes and counts go through floats, JSON and 64-bit integers, and some are added to others."""
LONGEST_S = 1e9
"""Clocks and timers fail beyond their range; this is 31 years."""


class Config(BaseModel):
    """Frozen, no unknown keys, no inf or nan, no number beyond what machines hold; field docstrings are the help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _is_bounded(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses a number that would fail hours later, in a timer or in a library that takes 64 bits."""
        if type(value) is int and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"must be at most {LARGEST_INTEGER}")
        if type(value) in (int, float) and str(info.field_name).endswith("_s") and value > LONGEST_S:
            raise ValueError(f"must be at most {LONGEST_S:g} seconds")
        if isinstance(value, str) and "\0" in value and info.field_name in ("dir", "path"):
            raise ValueError("must not have a NUL character")
        return value


def _import_path(path: str) -> str:
    if re.fullmatch(_IMPORT_PATH, path):
        return path
    words = path.removeprefix("./")
    module, _, name = words.partition(":") if ":" in words else words.removesuffix(".py").rpartition(".")
    near = f"{module.removesuffix('.py').replace('/', '.')}:{name}"
    raise ValueError(
        "must name a module and a function in it with a colon between: "
        f"{near if re.fullmatch(_IMPORT_PATH, near) else 'my_rewards:my_function'}"
    )


_IMPORT_PATH = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"

ImportPath = Annotated[str, AfterValidator(_import_path)]
"""`package.module:function`."""
