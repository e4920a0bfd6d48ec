"""The section `environment`: what answers the policy between its turns, one class per `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ray_rl.config.base import Config, ImportPath


class SingleTurn(Config):
    """Every prompt is answered once, and `rewards` judge the answer."""

    kind: Literal["single_turn"] = "single_turn"


class EnvironmentPart(Config):
    """Settings of all environments with several turns.

    The reward of an episode is the sum of what its turns got from the environment, and of `rewards`.
    """

    kind: str
    """Names the environment."""
    max_turns: int = Field(8, ge=1)
    """Most turns of the policy in an episode. An episode that reaches it ends with the reason `turns`."""
    max_tokens: int = Field(2048, ge=1)
    """Most tokens of an episode after its prompt, answers of the environment included; `rollout.max_tokens` is the
    limit of one turn. An episode that reaches it ends with the reason `length`."""
    max_tool_calls: int | None = Field(None, ge=1)
    """Most calls of tools in an episode, which then ends with the reason `tool`. None: no limit."""
    timeout_s: float = Field(600.0, gt=0)
    """No turn begins later than this after the start of its episode, which then ends with the reason `time`."""
    turn_timeout_s: float = Field(60.0, gt=0)
    """Limit for each call of the environment. An episode whose environment takes longer ends with the reason
    `environment`, and has no reward."""
    parser: str | None = None
    """How calls of tools are written: `hermes`, `llama3_json`, `pythonic`, or the name of one of vLLM's parsers. `auto`
    follows the chat template of the model. None: no calls are read."""
    history: Literal["refuse", "keep"] = "refuse"
    """What happens if the chat template writes earlier turns differently in a later prompt, as those of reasoning
    models that drop thoughts. refuse: the run does not start. keep: the policy reads in every turn what it said before,
    word for word, which differs from the template."""
    workers: int = Field(1, ge=1)
    """Processes that hold the environments, on nodes without GPUs if the cluster has any. Each holds many episodes at a
    time."""


class CustomEnvironment(EnvironmentPart):
    """An environment of yours: docs/environments.md shows one of 30 lines."""

    kind: Literal["custom"] = "custom"
    function: ImportPath
    """Import path of its class, or of a function that makes one: `package.module:MyEnvironment`. It is called once for
    each episode."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of each call of `function`."""


class TextArena(EnvironmentPart):
    """A game for one player of the package `textarena`, such as `GuessTheNumber-v0`. Needs the extra `textarena`.

    The reward is the game's, at its end.
    """

    kind: Literal["textarena"] = "textarena"
    name: str
    """Name of the game. Observations are those of the game itself, without wrappers of the package."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the game, for example {max_number: 10}."""


class ProgramEnvironment(EnvironmentPart):
    """A program for each episode, which asks an OpenAI client for every turn of the policy.

    It finds the client's settings in `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `OPENAI_MODEL`, the row in the file
    `RAY_RL_ROW` and a seed in `RAY_RL_SEED`, and prints its reward in its last line, {"reward": 1.0, "metrics": {}}.
    """

    kind: Literal["program"] = "program"
    command: list[str] = Field(min_length=1)
    """Words of the command, for example [".venv-agent/bin/python", agent.py]."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Further variables of its environment."""


class SearchTool(Config):
    """A tool that searches a local corpus by words (BM25), and returns the best passages."""

    kind: Literal["search"] = "search"
    path: str = Field(min_length=1)
    """A folder, whose files `*.txt` and `*.md` are read, or a file of JSON lines."""
    text_column: str = "text"
    """Key of the text in a line of JSON."""
    title_column: str | None = None
    """Key of the title in a line of JSON. None: the number of the line. The title of a file is its path."""
    name: str = Field("search", pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")
    """Name of the tool."""
    description: str = "Searches a collection of texts and returns the passages that fit best."
    """Description of the tool, for the policy."""
    results: int = Field(3, ge=1, le=100)
    """Number of passages that a search returns."""
    passage_characters: int = Field(800, ge=50)
    """Most characters of a passage. Longer texts are divided at the ends of lines or words."""


class McpServer(Config):
    """The tools of a server of the Model Context Protocol, which is started as a process and speaks over its pipes."""

    kind: Literal["mcp"] = "mcp"
    command: str = Field(min_length=1)
    """Program that is the server."""
    arguments: list[str] = Field(default_factory=list)
    """Arguments of the program."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the server. It inherits only HOME, LOGNAME, PATH, SHELL, TERM and USER."""
    tools: list[str] | None = Field(None, min_length=1)
    """Names of the tools that the policy may call. None: all."""
    shared: bool = False
    """True: all episodes of a worker use one server, which must have no state. False: each episode starts one."""
    start_timeout_s: float = Field(60.0, gt=0)
    """Limit for the start of a server, and for its list of tools."""


ToolSource = Annotated[SearchTool | McpServer, Field(discriminator="kind")]


class ToolsEnvironment(EnvironmentPart):
    """The policy calls tools and reads their results, until it replies without a call."""

    kind: Literal["tools"] = "tools"
    tools: list[ImportPath] = Field(default_factory=list)
    """Import paths, `package.module:name`, of functions with type hints and a docstring. A class stands for its public
    methods, on an object of its own for each episode."""
    sources: list[ToolSource] = Field(default_factory=list)
    """Further tools: a search in texts, or servers."""
    describe: bool = True
    """Write the schemas of the tools into the prompt: by the chat template if it reads them, else into the system
    message. False: the prompts say by themselves what the policy may call."""
    parser: str = "auto"
    """Form of the calls, as in all environments; an environment with tools always reads them."""
    tool_timeout_s: float = Field(30.0, gt=0)
    """Limit for the calls of one reply together. A call that takes longer, and those behind it, are answered with an
    error."""
    max_result_characters: int = Field(4000, ge=20)
    """Most characters of a result; the rest is cut off, and a note says so."""
    max_calls_per_turn: int = Field(16, ge=1)
    """Most calls in one reply. Further ones are answered with an error."""
    reward: ImportPath | None = None
    """Import path of a function that gets the episode after its last reply (docs/environments.md) and returns a number,
    or None for no opinion. It is added to `rewards`."""


EnvironmentConfig = Annotated[
    SingleTurn | CustomEnvironment | ToolsEnvironment | TextArena | ProgramEnvironment, Field(discriminator="kind")
]
