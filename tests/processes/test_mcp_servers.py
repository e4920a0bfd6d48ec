"""Tools of real servers of the Model Context Protocol, as processes that speak over their pipes."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_rl.config.environment import ToolsEnvironment
from ray_rl.environments.base import Reply
from ray_rl.environments.tools.building import ToolEnvironments
from ray_rl.environments.tools.environment import ToolEnvironment
from ray_rl.errors import ConfigError, EnvironmentFailed
from ray_rl.isolation.family import MARK
from ray_rl.types import ToolCall

SERVER = str(Path(__file__).with_name("mcp_server.py"))
Make = Callable[..., ToolEnvironments]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes environments whose only source is the server, and closes them at the end."""
    made: list[ToolEnvironments] = []

    def one(*arguments: str, limits: dict[str, Any] | None = None, **source: Any) -> ToolEnvironments:
        server = {"kind": "mcp", "command": sys.executable, "arguments": [SERVER, *arguments], **source}
        made.append(ToolEnvironments(ToolsEnvironment.model_validate({"sources": [server], **(limits or {})})))
        return made[-1]

    yield one
    for each in made:
        await each.close()
    assert servers() == []


def servers() -> list[int]:
    """The running servers among the children of this process."""
    children = psutil.Process().children(recursive=True)
    return [each.pid for each in children if each.is_running() and SERVER in each.cmdline()]


async def said(environment: ToolEnvironment, name: str, **arguments: Any) -> str:
    (message,) = (await environment.step(Reply("", (ToolCall(name, arguments),)))).messages
    return message.content


async def test_the_tools_of_a_server_are_listed_and_called(make: Make):
    environments = make(tools=["count", "fail", "long"], limits={"max_result_characters": 100})
    schemas = {schema["function"]["name"]: schema["function"] for schema in await environments.schemas()}
    assert list(schemas) == ["count", "fail", "long"]
    assert schemas["count"]["description"] == "Adds to a counter and returns it."
    assert schemas["count"]["parameters"]["properties"]["by"]["type"] == "integer"
    environment = environments.make()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(environment.close)
        await environment.reset({}, 0)
        assert await said(environment, "count", by=3) == "3"
        assert await said(environment, "count") == "4"
        assert json.loads(await said(environment, "count", by="x"))["error"].startswith("count: arguments['by']: 'x'")
        failed = json.loads(await said(environment, "fail"))["error"]
        assert failed.startswith("fail: Error executing tool fail")
        assert await said(environment, "long") == "x" * 100 + "\n[cut off after 100 of 1000000 characters]"
        assert json.loads(await said(environment, "die"))["error"].startswith("there is no tool 'die'")


async def test_each_episode_has_a_server_of_its_own(make: Make):
    environments = make()
    one, two = environments.make(), environments.make()
    await asyncio.gather(one.reset({}, 0), two.reset({}, 0))
    assert len(servers()) == 2
    assert [await said(one, "count"), await said(one, "count"), await said(two, "count")] == ["1", "2", "1"]
    await one.close()
    assert len(servers()) == 1 and await said(two, "count") == "2"
    # Another task than the one that opened it may close it.
    await asyncio.create_task(two.close())


async def test_episodes_can_share_a_server_which_is_started_again_after_its_end(make: Make):
    environments = make(shared=True)
    one, two = environments.make(), environments.make()
    await asyncio.gather(one.reset({}, 0), two.reset({}, 0))
    assert [await said(one, "count"), await said(two, "count")] == ["1", "2"]
    await one.close()
    assert await said(two, "count") == "3"
    assert json.loads(await said(two, "die"))["error"] == "die: Connection closed"
    assert json.loads(await said(two, "count"))["error"] == "count: the server of this tool has ended"
    three = environments.make()
    await three.reset({}, 0)
    assert await said(three, "count") == "1"


async def test_a_call_that_hangs_is_answered_and_its_server_ends_with_the_episode(make: Make):
    environments = make(limits={"tool_timeout_s": 0.3})
    environment = environments.make()
    await environment.reset({}, 0)
    begun_s = time.monotonic()
    assert "took longer than 0.3 s" in await said(environment, "wait", seconds=60)
    await environment.close()
    assert time.monotonic() - begun_s < 15
    assert servers() == []


async def test_a_server_does_not_inherit_secrets(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv(MARK, "of-its-worker")  # by which it is found after the worker was killed
    environment = make(variables={"MINE": "1"}).make()
    await environment.reset({}, 0)
    names = (await said(environment, "variables")).split()
    assert "MINE" in names and "PATH" in names and "HF_TOKEN" not in names
    assert MARK in names
    await environment.close()


async def test_a_server_that_does_not_start_is_an_error_that_names_it(make: Make):
    for environments, why in (
        (make("slow", start_timeout_s=0.5), r"mcp_server\.py slow' did not start: no answer in 0\.5 s"),
        (make(command="/no/such/program"), "'/no/such/program .* did not start: FileNotFoundError"),
        (make(command="/bin/true"), "did not start: "),
    ):
        with pytest.raises(EnvironmentFailed, match=why):
            await environments.schemas()
        assert servers() == []


async def test_a_tool_that_the_server_does_not_have_is_refused(make: Make):
    with pytest.raises(ConfigError, match=r"has no tool 'sum'; it has count, fail"):
        await make(tools=["count", "sum"]).schemas()
