"""What a completion is worth: a list of weighted parts, each a union on `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ray_rl.config.base import Config


class Part(Config):
    """What all reward functions share."""

    weight: float = Field(1.0, allow_inf_nan=False)
    """Factor in the sum."""
    name: str | None = None
    """Key in records and metrics (`reward/<name>_mean`). None: the kind."""
    on_error: Literal["stop", "skip"] = "stop"
    """A function that raises, hangs or returns nan stops the step and names the sample; `skip` counts it and has no
    opinion."""
    timeout_s: float = Field(10.0, gt=0)
    """Limit for one call: over the completions of one prompt for `custom`, over one completion for the others."""


class Number(Part):
    """1 if the last number of the completion equals the column (of "... #### 42", what follows the hashes), else 0."""

    kind: Literal["number"] = "number"
    column: str = "answer"
    require_stop: bool = True
    """A completion cut off by the token limit scores 0: its last number need not be its answer."""


class MathVerify(Part):
    """1 if the `math-verify` library finds the answer equal to the column, else 0. Runs in a worker process.

    Of a column like GSM8K's "... #### 42" the answer is what follows the hashes.
    """

    kind: Literal["math_verify"] = "math_verify"
    column: str = "answer"


class Regex(Part):
    """1 if the pattern is found in the completion (`re.search`, DOTALL), else 0."""

    kind: Literal["regex"] = "regex"
    pattern: str


class Length(Part):
    """-max(0, tokens - target) / target: 0 up to `target` tokens, -1 at twice that."""

    kind: Literal["length"] = "length"
    target: int = Field(ge=1)


class ReasoningGymScore(Part):
    """Score in [0, 1] by the verifier of the task that made the prompt."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"


class CustomReward(Part):
    """An import path to `function(completions, **columns) -> list[float | None]`."""

    kind: Literal["custom"] = "custom"
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed as further keywords."""


RewardConfig = Annotated[
    Number | MathVerify | Regex | Length | ReasoningGymScore | CustomReward, Field(discriminator="kind")
]
