"""Starts a Ray node of this machine without the processes that nobody needs there.

Ray has no setting for them in `ray.init`. Each of them imports Ray, for about half a processor second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ray._private import node, parameter, utils


@contextmanager
def bare_node() -> Iterator[None]:
    """Makes `ray.init` start no more within the block than a run on one machine needs.

    There is no autoscaler, as no node can be added; no log monitor, as every worker has a log file of its own and the
    driver shows none; no dashboard, which without its pages only reports usage. The agent of the node exports no
    metrics: see `records.gauges_of`.
    """
    with ExitStack() as stack:
        none: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
        settings = partial(parameter.RayParams, **none)
        stack.enter_context(_replaced(parameter, "RayParams", settings))
        stack.enter_context(_replaced(node.Node, "start_api_server", _nothing))
        stack.enter_context(_replaced(utils, "get_dashboard_dependency_error", _as_without_extras))
        yield


def _nothing(_: node.Node, **settings: Any) -> None: ...


def _as_without_extras() -> ImportError:
    """Returns the answer of an installation whose agent has no parts for the dashboard."""
    return ImportError("not needed")


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
