"""What every part of the configuration shares."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, no unknown keys, no inf or nan, field docstrings are the help texts."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
