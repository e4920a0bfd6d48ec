"""Parses the gold answers of a data set before the start, with the code that will score with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray_rl.config.rewards import Choice, CustomReward, MathVerify, Number, RewardConfig, RightCall
from ray_rl.data.columns import shorten
from ray_rl.data.rows import Row
from ray_rl.errors import ConfigError, DataError, SandboxError
from ray_rl.isolation.checking import check_function
from ray_rl.isolation.pool import Pool, default_processes
from ray_rl.isolation.worker import Worker
from ray_rl.rewards.functions.choices import choice_gold
from ray_rl.rewards.functions.math_text import math_gold, needs_algebra
from ray_rl.rewards.functions.numbers import number_gold
from ray_rl.rewards.functions.parts import VERIFIER_BYTES
from ray_rl.rewards.tools.right_calls import expected_calls
from ray_rl.types import column_value

GOLD_S = 5.0
"""Limit for one gold: an expression that takes longer would take as long for every completion."""

IN_FLIGHT = 256
"""The most golds that wait for a worker process."""


@contextmanager
def golds_checked(rewards: Sequence[RewardConfig]) -> Iterator[Sequence[Callable[[Row], None]]]:
    """Yields a check of rows for each reward that compares with a column, and for each user's function.

    A check raises DataError with the row and the value. Golds that need algebra are parsed in worker processes, so the
    error of one may be raised at a later row or at the end of the block. It names its own row.
    """
    found = [_check_of(reward, f"rewards[{index}]") for index, reward in enumerate(rewards)]
    checks = [check for check in found if check is not None]
    algebra = [check for check in checks if isinstance(check, AlgebraCheck)]
    try:
        yield checks
        for check in algebra:
            check.finish()
    finally:
        for check in algebra:
            check.close()


def _check_of(reward: RewardConfig, key: str) -> Callable[[Row], None] | None:
    match reward:
        case Number():
            return GoldCheck(reward.column, number_gold, f"{key} (number)")
        case Choice():
            return GoldCheck(reward.column, partial(choice_gold, letters=reward.letters), f"{key} (choice)")
        case MathVerify():
            return AlgebraCheck(reward.column, f"{key} (math_verify)")
        case RightCall():
            return GoldCheck(reward.column, expected_calls, f"{key} (right_call)")
        case CustomReward():
            return FunctionCheck(reward, f"{key}.function")
        case _:
            return None


class GoldCheck:
    """Parses the gold answer of a row."""

    def __init__(self, column: str, parse: Callable[[Any], Any], who: str) -> None:
        """Makes the check.

        Args:
            column: the name or the dotted path of the column.
            parse: raises DataError for a value that is not exactly one answer.
            who: the name of the reward in errors.
        """
        self._column = column
        self._parse = parse
        self._who = who

    def __call__(self, row: Row) -> None:
        """Checks a row.

        Raises:
            DataError: the gold is wrong; the message names the row, the reward, the column and its value.
        """
        self._read(row)

    def _read(self, row: Row) -> tuple[Any, Any]:
        """Returns the value of the column and the parsed gold; (None, None) without the column: another check says so.

        Raises:
            DataError: see `__call__`.
        """
        try:
            value = column_value(row.columns, self._column)
        except KeyError:
            return None, None
        try:
            return value, self._parse(value)
        except DataError as error:
            raise self._error(row.id, str(error)) from error

    def _error(self, row_id: str, what: str) -> DataError:
        return DataError(f"{row_id}: column {self._column!r}, which {self._who} compares with: {what}")


class AlgebraCheck(GoldCheck):
    """Parses the gold answer of a row as mathematics. Values that need sympy go to worker processes, each once."""

    def __init__(self, column: str, who: str) -> None:
        """Makes the check; the first gold that needs algebra starts a worker process."""
        super().__init__(column, math_gold, who)
        self._seen: set[str] = set()
        self._waiting: list[tuple[str, Any, Future[Any]]] = []
        self._pool: Pool | None = None
        self._processes = default_processes()
        self._lock = threading.Lock()

    def __call__(self, row: Row) -> None:
        """Checks a row, and collects the results of earlier rows from the worker processes.

        Raises:
            DataError: this gold or an earlier one is wrong.
        """
        value, gold = self._read(row)
        with self._lock:
            if gold is not None and needs_algebra(gold) and gold not in self._seen:
                self._seen.add(gold)
                self._waiting.append((row.id, value, self._submit(value)))
            self._collect(most=IN_FLIGHT)

    def finish(self) -> None:
        """Waits for all golds that are parsed in worker processes.

        Raises:
            DataError: a gold is wrong; the message names the first such row.
        """
        with self._lock:
            self._collect(most=0)

    def close(self) -> None:
        """Ends the worker processes. Rows that are checked later, during training, start at most one."""
        with self._lock:
            pool, self._pool, self._processes = self._pool, None, 1
            self._waiting.clear()
        if pool is not None:
            pool.close()

    def _submit(self, value: Any) -> Future[Any]:
        if self._pool is None:
            self._pool = Pool(self._processes, make=partial(Worker, memory_bytes=VERIFIER_BYTES))
        return self._pool.submit("ray_rl.rewards.functions.math_answers:check_gold", timeout_s=GOLD_S, args=[value])

    def _collect(self, *, most: int) -> None:
        """Collects the results that are ready, and waits until at most `most` golds are in flight."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][2].done()):
            row_id, value, call = self._waiting.pop(0)
            try:
                problem = call.result()  # bound: a call of a worker process, which has a limit
            except (SandboxError, TimeoutError) as error:
                raise self._error(
                    row_id,
                    f"the answer {shorten(value)} cannot be parsed as an expression within {GOLD_S:g} s ({error}); "
                    "simplify it, or remove the row",
                ) from error
            if problem is not None:
                raise self._error(row_id, problem)


class FunctionCheck:
    """Checks with the columns of the first row that a user's function gets every parameter that it needs."""

    def __init__(self, reward: CustomReward, key: str) -> None:
        """Makes the check; the first row imports the function."""
        self._reward = reward
        self._key = key
        self._is_done = False

    def __call__(self, row: Row) -> None:
        """Checks the function with the columns of a row.

        Raises:
            ConfigError: the function needs another parameter or cannot be imported, or an option is a column too.
        """
        if self._is_done:
            return
        self._is_done = True
        reward = self._reward
        taken = sorted(row.columns.keys() & reward.options.keys())
        if taken:
            raise ConfigError(
                f"{self._key}={reward.function}: options {', '.join(taken)} are columns too; rename the options"
            )
        check_function(
            reward.function,
            key=self._key,
            check="ray_rl.rewards.functions.custom:check_users",
            kwargs={"signature": reward.signature, "columns": list(row.columns), "options": list(reward.options)},
        )
