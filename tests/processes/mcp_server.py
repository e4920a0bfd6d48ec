"""A server of the Model Context Protocol for tests: a counter with state, and tools that misbehave."""

import os
import sys
import time

from mcp.server import MCPServer

server = MCPServer("tests")
state = {"count": 0}


@server.tool()
def count(by: int = 1) -> int:
    """Adds to a counter and returns it."""
    state["count"] += by
    return state["count"]


@server.tool()
def fail() -> str:
    """Raises."""
    raise ValueError("a secret of the server")


@server.tool()
def long() -> str:
    """Returns a megabyte."""
    return "x" * 1_000_000


@server.tool()
def wait(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return "waited"


@server.tool()
def die() -> str:
    """Ends the server at once."""
    os._exit(3)


@server.tool()
def variables() -> str:
    """Lists the environment variables of the server."""
    return " ".join(sorted(os.environ))


@server.tool()
def process() -> int:
    """Returns the id of the server's process."""
    return os.getpid()


if __name__ == "__main__":
    if "slow" in sys.argv:
        time.sleep(60)
    server.run("stdio")
