"""Where prompts come from: a union on `kind`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from ray_rl.config.base import Config, ImportPath


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
    check_s: float = Field(60.0, ge=0)
    """Every row is checked before the start for at most this long; the others are checked during training."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be read, or that the chat template refuses, stops the run and is named; `skip` leaves it out
    and counts it."""


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
    """What sources made of rows share: which columns are the prompt and the answer."""

    format: Literal["auto", "plain", "verl", "trl", "openrlhf", "gsm8k", "math"] = "auto"
    """Whose names the columns have: `verl` (prompt, reward_model.ground_truth), `trl` (prompt, solution), `openrlhf`
    (input, label), `gsm8k` (question, answer), `math` (problem, answer), `plain` (prompt, answer). `auto` looks at the
    columns and says what it found. Columns that `prompt_column` and `columns` name come first."""
    prompt_column: str | None = None
    """Text, or a list of {role, content} messages; a dot leads into a nested column. None: by the format."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames: {name that the rewards see: column of the file}; `reward_model.ground_truth` is a nested one. Unnamed
    columns keep their names."""
    chat: bool = True
    """Wrap text as a user message and apply the chat template. False feeds the text as it is."""
    drop_last_answer: bool = False
    """Leave out the assistant's messages at the end of a conversation. Without, such a prompt is refused: the model
    would read the answer."""


class Files(Table):
    """What files share. A folder or a pattern like `data/*.parquet` stands for all its files, in the order of names."""

    path: str
    """A file, a folder, or a pattern. What `datasets` wrote with `save_to_disk` is read, too."""
    split: str = "train"
    """Which part of a `DatasetDict` that `save_to_disk` wrote."""


class Jsonl(Files):
    """One JSON object a line, also compressed (`.jsonl.gz`).

    GSM8K as published: {path: train.jsonl} with the reward `number` or `math_verify`.
    """

    kind: Literal["jsonl"] = "jsonl"


class Parquet(Files):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"


class Csv(Files):
    """Text files with a header and one record a row; all values are text."""

    kind: Literal["csv"] = "csv"
    delimiter: str = Field(",", min_length=1, max_length=1)
    """Between two values; "\\t" for tab-separated files."""


class Hub(Table):
    """A data set of the Hugging Face hub, by the name that `datasets.load_dataset` takes.

    A local folder works, too: one that `load_dataset` takes, or one that `save_to_disk` wrote.
    """

    kind: Literal["hub"] = "hub"
    name: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


class CustomSource(Source):
    """An import path to `function(**options) -> Sequence[Mapping]`, rows with a `prompt` (text or messages)."""

    kind: Literal["custom"] = "custom"
    function: ImportPath
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)


DataConfig = Annotated[
    Addition | ReasoningGym | Jsonl | Parquet | Csv | Hub | CustomSource, Field(discriminator="kind")
]


def is_pattern(path: str) -> bool:
    """Whether a path stands for all files that match it, and not for one file or folder."""
    return any(character in path for character in "*?[") and not Path(path).expanduser().exists()
