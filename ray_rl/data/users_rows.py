"""Gets rows from a user's function in a separate process, because its module may exit, hang or crash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from ray_rl.config.data import CustomSource
from ray_rl.data.columns import shorten
from ray_rl.errors import DataError, SandboxError
from ray_rl.isolation.worker import Worker

ROWS_TIMEOUT_S = 3600.0
"""How long the function may take to return all of its rows: it may download them."""


def users_rows(config: CustomSource) -> list[Any]:
    """Returns the rows of `data.function` as a list.

    Raises:
        DataError: the function raised, hung or crashed, or returned no rows; the message has file and line.
        ConfigError: there is no such module or function.
    """
    with closing(Worker()) as worker:
        try:
            rows = worker.call(
                config.function,
                kwargs=config.options,
                convert=("ray_rl.data.users_rows:plain_rows", {"function": config.function}),
                timeout_s=ROWS_TIMEOUT_S,
            )
        except (SandboxError, TimeoutError) as error:
            raise DataError(f"data.function={config.function}: {error}; correct the function") from error
    assert isinstance(rows, list), "plain_rows returns a list"
    return rows


def plain_rows(rows: Any, *, function: str) -> list[Any]:
    """Returns the rows as dictionaries, so that no class of the user's module crosses to the driver.

    Raises:
        DataError: the value is not a list of rows, or it is empty.
    """
    if not isinstance(rows, Iterable) or isinstance(rows, str | Mapping):
        raise DataError(f"data.function={function} returned {shorten(rows)}; return a list of mappings")
    plain = [dict(row) if isinstance(row, Mapping) else row for row in rows]
    if not plain:
        raise DataError(f"data.function={function} returned no rows; return at least one")
    return plain
