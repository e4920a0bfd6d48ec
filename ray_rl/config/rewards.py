"""The `rewards` section: functions and models that score completions, one class per `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ray_rl.config.base import Config, ImportPath


class Part(Config):
    """Settings of all judges. The reward of a completion is the weighted sum of their scores."""

    kind: str = ""
    """Names the judge."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Weight in the sum."""
    name: str | None = None
    """Name in records and metrics (`reward/<name>_mean`). None: the kind; for `custom`, the name of the function."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens if a function raises or hangs, or a judge returns nan: stop ends the step with an error that names
    the sample; skip counts it and gives no score. If one of our verifiers cannot check a completion, that is no error:
    the score is 0, and `reward/<name>_unverified` counts it."""

    @property
    def label(self) -> str:
        """The name in records and metrics."""
        return self.name or self.default_name

    @property
    def default_name(self) -> str:
        """The name if none is set."""
        return self.kind


class FunctionPart(Part):
    """Settings of all reward functions."""

    timeout_s: float = Field(10.0, gt=0)
    """Limit for one call. A call scores all completions of a prompt for `custom`, and one completion for other
    kinds."""
    workers: int | None = Field(None, ge=1, le=64)
    """Number of processes on the driver's machine that score concurrently, if the function runs in a process of its
    own. None: one per core of that machine and one per CPU of every other node of the Ray cluster, at most 64 a node;
    for `custom` 1, because the function may have state."""


class Comparison(FunctionPart):
    """Settings of functions that compare a completion's answer with a column."""

    column: str = "answer"
    """Column with the right answer. A dotted path, like `reward_model.ground_truth`, names a nested column."""
    require_stop: bool = True
    """Score 0 if the token limit cut the completion off, because its last words may not be its answer."""


class Number(Comparison):
    r"""1 if the number in the completion equals the column's exactly, else 0.

    The completion's number is that in its last \boxed{...}, or else its last one; the part where it thinks does not
    count. A column that is not exactly one number is refused before the start; in "... #### 42" it is 42.
    """

    kind: Literal["number"] = "number"


class MathVerify(Comparison):
    r"""1 if the completion's answer equals the column, by text or by the `math-verify` library, else 0.

    The answer is the last \boxed{...}, or else what follows "answer is"; the part where it thinks does not count. A
    column that is not exactly one expression, word or choice is refused before the start; in "... #### 42" it is 42.
    """

    kind: Literal["math_verify"] = "math_verify"


class Choice(Comparison):
    r"""1 if the completion chooses the letter of the column, else 0: "(B)", "The answer is B.", \boxed{B}.

    The choice is the last \boxed{...}, or else what follows "answer is", "option" or "choice"; the part where it thinks
    does not count. A column that is not exactly one of the letters is refused before the start.
    """

    kind: Literal["choice"] = "choice"
    letters: str = Field("ABCDEFGHIJ", pattern=r"^[A-Z]+$")
    """The possible choices."""


class Regex(FunctionPart):
    """1 if the pattern matches anywhere in the completion (`re.search` with DOTALL), else 0."""

    kind: Literal["regex"] = "regex"
    pattern: str
    """Regular expression of Python."""


class Length(FunctionPart):
    """-max(0, tokens - target) / target: 0 up to `target` tokens, -1 at twice as many."""

    kind: Literal["length"] = "length"
    target: int = Field(ge=1)
    """Most tokens of a completion without a penalty."""


class ReasoningGymScore(FunctionPart):
    """Score in [0, 1] by the verifier of the `reasoning_gym` task that made the prompt."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"


class CustomReward(FunctionPart):
    """A reward function of yours. Its parameters show how to call it (docs/rewards.md).

    Ours are `(completions, **columns)`, TRL's `(prompts, completions, **columns)`, and verl's `(data_source,
    solution_str, ground_truth, extra_info=None)`. Each may be async.
    """

    kind: Literal["custom"] = "custom"
    function: ImportPath
    """Import path: `package.module:function`."""
    signature: Literal["ray_rl", "trl", "verl"] | None = None
    """How to call the function. None: its parameters decide."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the function."""

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
    """Factor of the standard deviation."""


class ModelReward(Part):
    """The score of a reward model, or the combined score of several."""

    kind: Literal["model"] = "model"
    paths: list[str] = Field(min_length=1)
    """Sequence classification models with one label; each uses its own tokenizer and chat template."""
    combine: MeanOfModels | MinOfModels | MeanMinusStd = Field(MeanOfModels(), discriminator="kind")
    """How the scores of several models become one."""
    workers: int = Field(1, ge=1)
    """Number of workers. With fewer workers than models, each holds several models. With a multiple, each model is held
    by equally many workers, which divide the completions."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens, padding included, of one forward pass. A deterministic run scores completions one by one."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of a conversation; longer ones are cut at their start, and counted. None: the model's context."""
    timeout_s: float = Field(600.0, gt=0)
    """Limit for one call, which scores all completions that are waiting."""


class ToolPart(Part):
    """Settings of rewards for calls of tools, in [0, 1]. They need an environment with tools."""


class ToolFormat(ToolPart):
    """Share of the turns with calls whose calls are all well formed; no opinion without a call."""

    kind: Literal["tool_format"] = "tool_format"


class ValidCalls(ToolPart):
    """Share of the calls that name a tool and have arguments that fit its schema; no opinion without a call."""

    kind: Literal["valid_calls"] = "valid_calls"


class RightCall(ToolPart):
    """1 if the calls of the episode are those in the column, else 0; no opinion if the column is null."""

    kind: Literal["right_call"] = "right_call"
    column: str = "calls"
    """Column with the expected calls (docs/rewards.md has the forms). A dotted path names a nested column."""
    calls: Literal["first", "all"] = "all"
    """Calls that are compared: the first one of the episode with the first expected one, or all, in any order."""


class Recovery(ToolPart):
    """Share of the turns with an error after which the next turn has a call that works; no opinion without one."""

    kind: Literal["recovery"] = "recovery"


FunctionConfig = Number | MathVerify | Choice | Regex | Length | ReasoningGymScore | CustomReward
ToolReward = ToolFormat | ValidCalls | RightCall | Recovery
RewardConfig = Annotated[FunctionConfig | ToolReward | ModelReward, Field(discriminator="kind")]
