"""What a completion is worth: a list of weighted parts, each a union on `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ray_rl.config.base import Config, ImportPath


class Part(Config):
    """What all judges share."""

    weight: float = Field(1.0, allow_inf_nan=False)
    """Factor in the sum."""
    name: str | None = None
    """Key in records and metrics (`reward/<name>_mean`). None: the kind; of `custom`, the name of the function."""
    on_error: Literal["stop", "skip"] = "stop"
    """A function that raises or hangs, and any judge that returns nan, stops the step and names the sample; `skip`
    counts it and has no opinion. Where a verifier of ours cannot check what the policy wrote, that is a 0 and not an
    error: it is counted in `reward/<name>_unverified`."""

    @property
    def label(self) -> str:
        """The key in records and metrics."""
        return self.name or self.default_name

    @property
    def default_name(self) -> str:
        """The name of a part that was given none."""
        raise NotImplementedError


class FunctionPart(Part):
    """What all reward functions share."""

    timeout_s: float = Field(10.0, gt=0)
    """Limit for one call: over the completions of one prompt for `custom`, over one completion for the others."""
    workers: int | None = Field(None, ge=1, le=64)
    """Processes that score at the same time, where the function runs in a process of its own. None: one for each core
    of the driver's machine; 1 for `custom`, whose function may keep state."""


class Number(FunctionPart):
    r"""1 if the number that the completion answers with equals the column's exactly, else 0.

    That is the number of its last \boxed{...}, or else the last one, behind the thinking. A column that is not exactly
    one number is refused before the start; of "... #### 42" it is what follows the hashes.
    """

    kind: Literal["number"] = "number"
    column: str = "answer"
    """May be a dotted path into nested columns: `reward_model.ground_truth`."""
    require_stop: bool = True
    """A completion cut off by the token limit scores 0: its last number need not be its answer."""

    @property
    def default_name(self) -> str:
        """The kind."""
        return self.kind


class MathVerify(FunctionPart):
    r"""1 if the completion's answer equals the column, by text or by the `math-verify` library, else 0.

    The answer is the last \boxed{...} behind the thinking, or else what follows "answer is". A column that is not
    exactly one expression, word or choice is refused before the start; of "... #### 42" it is what follows the hashes.
    """

    kind: Literal["math_verify"] = "math_verify"
    column: str = "answer"
    """May be a dotted path into nested columns: `reward_model.ground_truth`."""
    require_stop: bool = True
    """A completion cut off by the token limit scores 0: its last expression need not be its answer."""

    @property
    def default_name(self) -> str:
        """The kind."""
        return self.kind


class Choice(FunctionPart):
    r"""1 if the completion chooses the letter of the column, else 0: "(B)", "The answer is B.", \boxed{B}.

    The choice is the last \boxed{...} behind the thinking, or else what follows "answer is", "option" or "choice". A
    column that is not exactly one of the letters is refused before the start.
    """

    kind: Literal["choice"] = "choice"
    column: str = "answer"
    """May be a dotted path into nested columns: `reward_model.ground_truth`."""
    letters: str = Field("ABCDEFGHIJ", pattern=r"^[A-Z]+$")
    """The choices that there are."""
    require_stop: bool = True
    """A completion cut off by the token limit scores 0."""

    @property
    def default_name(self) -> str:
        """The kind."""
        return self.kind


class Regex(FunctionPart):
    """1 if the pattern is found in the completion (`re.search`, DOTALL), else 0."""

    kind: Literal["regex"] = "regex"
    pattern: str

    @property
    def default_name(self) -> str:
        """The kind."""
        return self.kind


class Length(FunctionPart):
    """-max(0, tokens - target) / target: 0 up to `target` tokens, -1 at twice that."""

    kind: Literal["length"] = "length"
    target: int = Field(ge=1)

    @property
    def default_name(self) -> str:
        """The kind."""
        return self.kind


class ReasoningGymScore(FunctionPart):
    """Score in [0, 1] by the verifier of the task that made the prompt."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"

    @property
    def default_name(self) -> str:
        """The kind."""
        return self.kind


class CustomReward(FunctionPart):
    """An import path to a reward function, recognised by its parameters (docs/rewards.md).

    Ours is `(completions, **columns)`, TRL's `(prompts, completions, **columns)`, verl's `(data_source, solution_str,
    ground_truth, extra_info=None)`. Each may be async.
    """

    kind: Literal["custom"] = "custom"
    function: ImportPath
    """`package.module:function`."""
    signature: Literal["ray_rl", "trl", "verl"] | None = None
    """How to call the function. None: as the names of its parameters say."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed as further keywords."""

    @property
    def default_name(self) -> str:
        """The name of the function."""
        return self.function.rpartition(":")[2]


class MeanOfModels(Config):
    """The mean of the models' scores."""

    kind: Literal["mean"] = "mean"


class MinOfModels(Config):
    """The lowest of the models' scores: worst-case optimisation (arXiv:2310.02743)."""

    kind: Literal["min"] = "min"


class MeanMinusStd(Config):
    """Mean - k * std (ddof 0) over the models; arXiv:2310.02743 subtracts a multiple of the variance instead."""

    kind: Literal["mean_minus_std"] = "mean_minus_std"
    k: float = Field(1.0, ge=0)


class ModelReward(Part):
    """The score of a reward model, or the combined score of several."""

    kind: Literal["model"] = "model"
    paths: list[str] = Field(min_length=1)
    """Sequence classification models with one label, each with its own tokenizer and chat template."""
    combine: MeanOfModels | MinOfModels | MeanMinusStd = Field(MeanOfModels(), discriminator="kind")
    """How an ensemble becomes one score."""
    workers: int = Field(1, ge=1)
    """Fewer than the models: each holds some of them. A multiple of the models: each is held as often, and the
    completions are split."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens (padding included) of one forward pass. A deterministic run scores completions one by one."""
    max_tokens: int | None = Field(None, ge=1)
    """Of a conversation; what is longer is cut at its start, and counted. None: the model's context."""
    timeout_s: float = Field(600.0, gt=0)
    """Limit of one call, which scores all completions that were waiting for a score."""

    @property
    def default_name(self) -> str:
        """The kind."""
        return self.kind


FunctionConfig = Number | MathVerify | Choice | Regex | Length | ReasoningGymScore | CustomReward
RewardConfig = Annotated[FunctionConfig | ModelReward, Field(discriminator="kind")]
