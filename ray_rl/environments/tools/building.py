"""Makes the environments of `environment: {kind: tools}`."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.config.environment import McpServer, SearchTool, ToolsEnvironment
from ray_rl.environments.tools.environment import ToolEnvironment
from ray_rl.environments.tools.mcp_servers import McpTools
from ray_rl.environments.tools.schema import Schema
from ray_rl.environments.tools.search import SearchTools
from ray_rl.environments.tools.sources import source_of
from ray_rl.environments.tools.tool import ToolSource
from ray_rl.errors import ConfigError
from ray_rl.isolation.importing import import_function


class ToolEnvironments:
    """Makes an environment for each episode of a process. The episodes share corpora and shared servers."""

    def __init__(self, settings: ToolsEnvironment) -> None:
        """Makes the sources and imports the functions; nothing is read or started yet.

        Raises:
            ConfigError: a function cannot be imported, no schema can be made of it, or there is no tool.
        """
        if not settings.tools and not settings.sources:
            raise ConfigError("environment: no tools; name functions in environment.tools, or add environment.sources")
        self._settings = settings
        self._sources: list[ToolSource] = [source_of(import_function(path)) for path in settings.tools]
        self._sources += [_source(source) for source in settings.sources]
        self._reward = None if settings.reward is None else import_function(settings.reward)

    def make(self) -> ToolEnvironment:
        """Returns the environment of one episode."""
        return ToolEnvironment(self._sources, settings=self._settings, reward=self._reward)

    async def schemas(self) -> Sequence[Schema]:
        """Returns the schemas of all tools, for the prompt and for the parser. Reads corpora and starts servers.

        Raises:
            ConfigError: two tools have the same name, or a source is configured wrongly.
            EnvironmentFailed: a server does not start.
        """
        return await self.make().schemas()

    async def close(self) -> None:
        """Ends what the episodes share."""
        for source in self._sources:
            await source.close()


def _source(settings: SearchTool | McpServer) -> ToolSource:
    match settings:
        case SearchTool():
            return SearchTools(settings)
        case McpServer():
            return McpTools(settings)
