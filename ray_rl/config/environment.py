"""The `environment` section: what answers the policy between its turns, one class per `kind`."""

from typing import Annotated, Literal

from pydantic import Field

from ray_rl.config.base import Config, ImportPath


class EnvironmentPart(Config):
    """Settings of all environments."""


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
    """What the policy reads about the tool."""
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
    parser: str = "auto"
    """How calls are written: `hermes`, `llama3_json`, `pythonic`, or the name of one of vLLM's parsers. `auto` follows
    the chat template of the model."""
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
