"""The `data` section: where prompts come from, one class per `kind`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from ray_rl.config.base import Config, ImportPath


class Source(Config):
    """Settings of all prompt sources."""

    shuffle: bool = True
    """Draw prompts in a random order that depends only on `run.seed` and the epoch. False keeps the source's order."""
    system_prompt: str | None = None
    """System message at the start of every conversation. None: what the model's chat template does without one."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Values of variables that the chat template reads, for example {enable_thinking: false}, or {date_string: ...} for
    a template that writes today's date. The template of the exported model has them as defaults."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are left out; their number is reported. Only for algorithms that learn from rollouts."""
    max_tokens: int = Field(2048, ge=1)
    """Most tokens of a sequence, prompt and answer together, of algorithms that learn from examples. TRL: 1024;
    OpenRLHF, LLaMA-Factory: 2048."""
    too_long: Literal["drop", "cut_prompt_left", "error"] = "drop"
    """What happens to an example with a sequence of more than `max_tokens`. drop: it is left out and counted.
    cut_prompt_left: the start of the prompt is removed; an example whose answer alone is too long is left out. error:
    the run ends before it starts."""
    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts whose examples are not trained on, but evaluated. A hash of the prompt decides, so that the
    same prompt is never on both sides. Only for algorithms that learn from examples."""
    deduplicate: bool = False
    """Keep only the first of several equal examples, and count the others. Only for algorithms that learn from
    examples."""
    check_s: float = Field(60.0, ge=0)
    """Limit for checking rows before the start; the remaining rows are checked during training. Only for algorithms
    that learn from rollouts."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What happens if a row cannot be read or the chat template refuses it: stop ends the run with an error that names
    the row; skip leaves the row out and counts it."""


class Addition(Source):
    """Generated questions: "What is 17+25? Answer with a number." The column `answer` has the sum."""

    kind: Literal["addition"] = "addition"
    maximum: int = Field(50, ge=1)
    """Largest value of the two numbers; the smallest is 0."""
    by_digits: bool = False
    """Draw the number of digits first, so that easy sums are as frequent as hard ones. A critic can then learn to tell
    them apart."""
    size: int = Field(10_000, ge=1)
    """Number of questions in an epoch."""


class ReasoningGym(Source):
    """A task of the `reasoning_gym` package, scored by its own verifier (use `rewards: [{kind: reasoning_gym}]`)."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str
    """Name of the task, for example `leg_counting` or `chain_sum`."""
    size: int = Field(1_000, ge=1)
    """Number of questions in an epoch."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the task itself, for example {min_terms: 2}."""


class Episodes(Source):
    """Rows for an environment that begins with a question of its own. They have no columns."""

    kind: Literal["episodes"] = "episodes"
    prompt: str = ""
    """Text before the first message of the environment, the same in all rows."""
    size: int = Field(1_000, ge=1)
    """Number of rows in an epoch. Their episodes differ by the seed that `reset` gets."""


Computed = Addition | ReasoningGym | Episodes
"""The sources whose rows are computed from their numbers."""

OnlineFormat = Literal["plain", "verl", "trl", "openrlhf", "gsm8k", "math"]
"""Forms of prompts with their answers, for algorithms that learn from rollouts."""
OfflineFormat = Literal[
    "prompt_completion",
    "messages",
    "sharegpt",
    "alpaca",
    "preference",
    "openai_preference",
    "hh_rlhf",
    "ultrafeedback",
    "helpsteer2",
    "helpsteer2_preference",
    "nectar",
    "openassistant",
    "kto",
    "stepwise",
    "prm800k",
    "math_shepherd",
]
"""Forms of examples; `ray_rl/data/formats/choose.py` has their conversions."""


class Table(Source):
    """Settings of sources with columns: which columns have the prompt and the answer."""

    format: Literal["auto"] | OnlineFormat | OfflineFormat = "auto"
    """Form of the rows. `auto` finds out from the columns and prints the result. For algorithms that learn from
    rollouts, it names the columns with prompt and answer, before which `prompt_column` and `columns` have precedence:
    `verl` (prompt, reward_model.ground_truth), `trl` (prompt, solution), `openrlhf` (input, label), `gsm8k` (question,
    answer), `math` (problem, answer), `plain` (prompt, answer). For algorithms that learn from examples, the formats
    are listed in docs/data.md."""
    prompt_column: str | None = None
    """Column with the prompt, which is text or a list of {role, content} messages. A dotted path names a nested column.
    None: the column of the format."""
    columns: dict[str, str] = Field(default_factory=dict)
    """New names of columns: {name that rewards see: column of the file}. A dotted path, like
    `reward_model.ground_truth`, names a nested column. Other columns keep their names."""
    chat: bool = True
    """Apply the chat template; a prompt that is text becomes a user message. False uses the text without a template."""
    drop_last_answer: bool = False
    """Remove the assistant's messages at the end of a conversation. False refuses such prompts, because they would show
    the answer to the model."""


class Files(Table):
    """Settings of files. A folder, or a pattern like `data/*.parquet`, stands for all its files, sorted by name."""

    path: str
    """A file, a folder or a pattern, or a folder that `save_to_disk` of `datasets` wrote."""
    split: str = "train"
    """Split to read, if `save_to_disk` wrote a `DatasetDict`."""


class Jsonl(Files):
    """Files with one JSON object per line, also compressed (`.jsonl.gz`).

    For GSM8K as published, set {path: train.jsonl} and the reward `number` or `math_verify`.
    """

    kind: Literal["jsonl"] = "jsonl"


class Parquet(Files):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"


class Csv(Files):
    """Text files with a header and one record per line; all values are text."""

    kind: Literal["csv"] = "csv"
    delimiter: str = Field(",", min_length=1, max_length=1)
    """Character between two values: "\\t" for tab-separated files."""


class Hub(Table):
    """A data set on the Hugging Face hub.

    A local folder works too, if `datasets.load_dataset` accepts it or `save_to_disk` wrote it.
    """

    kind: Literal["hub"] = "hub"
    name: str
    """Name for `datasets.load_dataset`: owner/name, or a folder."""
    subset: str | None = None
    """Configuration of the data set, as in `load_dataset(name, subset)`. None: its only or default one."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Branch, tag or commit on the hub. None: the newest commit."""


class CustomSource(Source):
    """Rows of your `function(**options) -> Sequence[Mapping]`; each has a `prompt`, text or messages."""

    kind: Literal["custom"] = "custom"
    function: ImportPath
    """Import path: `package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""


RecordSource = Jsonl | Parquet | Csv | Hub | CustomSource
"""The sources whose rows are records of a file, a data set or a function."""


class Part(Config):
    """A part of a mixture."""

    weight: float = Field(1.0, gt=0)
    """How often an example of this part occurs in an epoch: 2 means twice. A hash of its place decides about
    a fraction: with 0.25, a quarter of the examples occurs once and the others never."""
    source: RecordSource = Field(discriminator="kind")
    """Where the rows of this part come from. All settings that the sources share, such as `max_tokens` and `held_out`,
    are those of the mixture."""


class Mixture(Source):
    """Examples of several sources. Only for algorithms that learn from examples."""

    kind: Literal["mixture"] = "mixture"
    parts: list[Part] = Field(min_length=1)
    """The sources with their weights."""

    @property
    def sources(self) -> tuple[RecordSource, ...]:
        """The sources of the parts, with the settings of the mixture."""
        shared = {name: vars(self)[name] for name in Source.model_fields}
        return tuple(part.source.model_copy(update=shared) for part in self.parts)


DataConfig = Annotated[
    Addition | ReasoningGym | Episodes | Jsonl | Parquet | Csv | Hub | CustomSource | Mixture,
    Field(discriminator="kind"),
]


def is_pattern(path: str) -> bool:
    """Returns whether a path is a pattern for several files, and not the name of one file or folder."""
    return any(character in path for character in "*?[") and not Path(path).expanduser().exists()
