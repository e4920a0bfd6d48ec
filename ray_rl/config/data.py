"""Where prompts come from: a union on `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from ray_rl.config.base import Config


class Source(Config):
    """What all prompt sources share."""

    shuffle: bool = True
    """Draw in an order that is a function of (run.seed, epoch) alone. False keeps the order of the source."""
    system_prompt: str | None = None
    """Put before the conversation. None leaves it to the model's chat template."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Values for variables that the chat template reads, for example {enable_thinking: false}, or {date_string: ...}
    for one that writes today's date. The exported model's template has them as defaults."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are filtered out, counted and reported."""


class Addition(Source):
    """Procedural: "What is 17+25? Answer with a number." Column `answer` holds the sum."""

    kind: Literal["addition"] = "addition"
    maximum: int = Field(50, ge=1)
    """Both numbers are drawn from 0 to this, inclusive."""
    by_digits: bool = False
    """Draw the number of digits first, so that easy sums are as frequent as hard ones: what a critic can tell apart."""
    size: int = Field(10_000, ge=1)
    """Questions an epoch."""


class ReasoningGym(Source):
    """A task of the `reasoning_gym` package, scored by its own verifier (use `rewards: [{kind: reasoning_gym}]`)."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str
    """Name of the task, for example `leg_counting` or `chain_sum`."""
    size: int = Field(1_000, ge=1)
    """Questions an epoch."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the task's own configuration, for example {min_terms: 2}."""


class Table(Source):
    """What sources made of rows share: which column is the prompt."""

    prompt_column: str = "prompt"
    """Text, or a list of {role, content} messages."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames: {name that the rewards see: column of the file}. Unnamed columns keep their names."""
    chat: bool = True
    """Wrap text as a user message and apply the chat template. False feeds the text as it is."""


class Jsonl(Table):
    """One JSON object a line.

    GSM8K as published: {path: train.jsonl, prompt_column: question} with the reward `number` or `math_verify`.
    """

    kind: Literal["jsonl"] = "jsonl"
    path: str


class Parquet(Table):
    """A parquet file."""

    kind: Literal["parquet"] = "parquet"
    path: str


class Hub(Table):
    """A data set of the Hugging Face hub, by the name that `datasets.load_dataset` takes (a local folder works too)."""

    kind: Literal["hub"] = "hub"
    name: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


class CustomSource(Source):
    """An import path to `function(**options) -> Sequence[Mapping]`, rows with a `prompt` (text or messages)."""

    kind: Literal["custom"] = "custom"
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)


DataConfig = Annotated[Addition | ReasoningGym | Jsonl | Parquet | Hub | CustomSource, Field(discriminator="kind")]
