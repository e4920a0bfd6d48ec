"""What every part of the configuration shares."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, no unknown keys, no inf or nan, field docstrings are the help texts."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


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


_IMPORT_PATH = r"[\w.]+:\w+"

ImportPath = Annotated[str, AfterValidator(_import_path)]
"""`package.module:function`."""
