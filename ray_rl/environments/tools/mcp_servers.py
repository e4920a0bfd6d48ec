"""The tools of a server of the Model Context Protocol, a process that speaks over its pipes."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_rl.config.environment import McpServer
from ray_rl.environments.tools.schema import Schema
from ray_rl.environments.tools.tool import EpisodeTools, Tool, ToolError
from ray_rl.environments.tools.words import listed
from ray_rl.errors import ConfigError, EnvironmentFailed
from ray_rl.isolation.family import MARK

if TYPE_CHECKING:
    from mcp import Client

CLOSE_S = 10.0
"""Limit for the end of a server; mcp kills it after four seconds."""


class Session:
    """One running server. All of its life is in one task, as anyio demands; other tasks may call its tools."""

    def __init__(self, settings: McpServer) -> None:
        """Makes a session; `start` starts the server."""
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._client: Client | None = None

    async def start(self) -> list[Tool]:
        """Starts the server, and returns its tools.

        Raises:
            EnvironmentFailed: it does not start, or does not answer in time.
            ConfigError: it does not have a tool that the settings name, or a schema is wrong.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[list[Any]] = loop.create_future()
        self._task = loop.create_task(self._live(ready))
        first: list[asyncio.Future[Any]] = [ready, self._task]
        await asyncio.wait(first, timeout=self._settings.start_timeout_s, return_when="FIRST_COMPLETED")
        if ready.done():
            return self._tools(ready.result())
        error = self._task.exception() if self._task.done() and not self._task.cancelled() else None
        await self.close()
        limit = f"no answer in {self._settings.start_timeout_s:g} s"
        why = limit if error is None else f"{type(_innermost(error)).__name__}: {_innermost(error)}"
        raise EnvironmentFailed(
            f"the MCP server {self._shown} did not start: {why}; run this command by hand to see what it prints, or "
            "correct environment.sources"
        )

    async def close(self) -> None:
        """Ends the server, at once if it is still starting."""
        self._stop.set()
        if self._task is None:
            return
        if self._client is None:
            self._task.cancel()
        _, running = await asyncio.wait([self._task], timeout=CLOSE_S)
        for task in running:
            task.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # told by the calls that failed of it

    @property
    def is_alive(self) -> bool:
        """Whether the server has started and not ended."""
        return self._client is not None and not self._stop.is_set()

    async def _live(self, ready: asyncio.Future[list[Any]]) -> None:
        from mcp import Client
        from mcp.client.stdio import StdioServerParameters, stdio_client

        own = self._settings
        mark = {MARK: os.environ[MARK]} if MARK in os.environ else {}  # ends the server if its worker is killed
        server = StdioServerParameters(command=own.command, args=own.arguments, env={**own.variables, **mark})
        async with Client(stdio_client(server)) as client:
            listed_tools = (await client.list_tools()).tools
            self._client = client
            ready.set_result(list(listed_tools))
            await self._stop.wait()  # bound: until close, or until the server has ended

    async def _call(self, name: str, /, **arguments: Any) -> str:
        """Calls a tool of the server.

        Raises:
            ToolError: the server says that it failed, or has ended.
        """
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED

        if self._client is None or self._stop.is_set():
            raise ToolError("the server of this tool has ended")
        try:
            result = await self._client.call_tool(name, arguments)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                self._stop.set()
            raise ToolError(str(error)) from None
        text = "\n".join(_text(part) for part in result.content)
        if result.is_error:
            raise ToolError(text or "the tool failed")
        return text

    def _tools(self, given: Sequence[Any]) -> list[Tool]:
        named = {tool.name: tool for tool in given}
        wanted = self._settings.tools or list(named)
        for name in wanted:
            if name not in named:
                raise ConfigError(
                    f"environment.sources: the MCP server {self._shown} has no tool {name!r}; it has {listed(named)}; "
                    "correct `tools`"
                )
        return [
            Tool.given(
                {"name": name, "description": named[name].description, "parameters": named[name].input_schema},
                partial(self._call, name),
            )
            for name in wanted
        ]

    @property
    def _shown(self) -> str:
        return repr(" ".join([self._settings.command, *self._settings.arguments]))


class McpTools:
    """The tools of a server, which episodes share or each starts for itself; see `ToolSource`."""

    def __init__(self, settings: McpServer) -> None:
        """Makes the source; the first use starts a server."""
        self._settings = settings
        self._schemas: list[Schema] | None = None
        self._shared: Session | None = None
        self._tools: list[Tool] = []
        self._starting = asyncio.Lock()

    async def schemas(self) -> list[Schema]:
        """Returns the schemas of the tools. The first call starts a server and asks it.

        Raises:
            EnvironmentFailed: the server does not start.
            ConfigError: it does not have a tool that the settings name.
        """
        if self._schemas is None:
            opened = await self.open({}, 0)
            self._schemas = [tool.schema for tool in opened.tools]
            await opened.close()
        return self._schemas

    async def open(self, row: Mapping[str, Any], seed: int) -> EpisodeTools:
        """Starts a server for the episode, or returns the tools of the one that episodes share.

        A shared server that has ended is started again.

        Raises:
            EnvironmentFailed: the server does not start.
            ConfigError: it does not have a tool that the settings name.
        """
        if not self._settings.shared:
            session = Session(self._settings)
            return EpisodeTools(await _started(session), close=session.close)
        async with self._starting:
            if self._shared is None or not self._shared.is_alive:
                await self.close()
                session = Session(self._settings)
                self._tools = await _started(session)
                self._shared = session
            return EpisodeTools(self._tools)

    async def close(self) -> None:
        """Ends the server that episodes share."""
        session, self._shared = self._shared, None
        if session is not None:
            await session.close()


async def _started(session: Session) -> list[Tool]:
    """Returns the tools of a session, which is closed if it cannot be used."""
    started = False
    try:
        tools = await session.start()
        started = True
    finally:
        if not started:
            await session.close()
    return tools


def _text(part: Any) -> str:
    """Returns a part of a result as text; of pictures and other data only what they are."""
    match part.type:
        case "text":
            return str(part.text)
        case "resource" if isinstance(part.resource.model_dump().get("text"), str):
            return str(part.resource.text)
        case "image" | "audio":
            return f"[{part.type} of type {part.mime_type}, {len(base64.b64decode(part.data))} bytes]"
        case kind:
            return f"[{kind}]"


def _innermost(error: BaseException) -> BaseException:
    """Returns the first cause inside groups of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
