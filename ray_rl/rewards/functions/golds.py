"""Parses the gold answers of a data set before the start, by the code that scores with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray_rl.config.rewards import Choice, CustomReward, MathVerify, Number, RewardConfig
from ray_rl.data.columns import shorten
from ray_rl.data.rows import Row
from ray_rl.errors import ConfigError, DataError, SandboxError
from ray_rl.isolation.checking import check_call
from ray_rl.isolation.pool import Pool, default_processes
from ray_rl.isolation.worker import Worker
from ray_rl.rewards.functions.choices import choice_gold
from ray_rl.rewards.functions.math_text import math_gold, needs_algebra
from ray_rl.rewards.functions.numbers import number_gold
from ray_rl.rewards.functions.parts import VERIFIER_BYTES
from ray_rl.types import column_value

GOLD_S = 5.0
"""Limit for one gold: an expression that takes longer to parse would take it again with every completion."""

IN_FLIGHT = 256
"""Golds that may wait for a worker process."""


def gold_checks(rewards: Sequence[RewardConfig]) -> list[Callable[[Row], None]]:
    """Checks of a row for each reward that compares with a column, and for each user's function.

    A check raises DataError with the row and the value. Golds that take algebra are parsed in worker processes: the
    error of one may be raised at a later row, and names its own; `finish_golds` waits for those that are left.

    Args:
        rewards: the configured rewards.
    """
    checks: list[Callable[[Row], None]] = []
    for index, reward in enumerate(rewards):
        match reward:
            case Number():
                checks.append(GoldCheck(reward.column, number_gold, f"rewards[{index}] (number)"))
            case Choice():
                parse = partial(choice_gold, letters=reward.letters)
                checks.append(GoldCheck(reward.column, parse, f"rewards[{index}] (choice)"))
            case MathVerify():
                checks.append(AlgebraCheck(reward.column, f"rewards[{index}] (math_verify)"))
            case CustomReward():
                checks.append(FunctionCheck(reward, f"rewards[{index}].function"))
            case _:
                pass
    return checks


def finish_golds(checks: Sequence[Callable[[Row], None]]) -> None:
    """Waits for the golds that are still parsed in worker processes, and ends those.

    Raises:
        DataError: the first of them that is wrong.
    """
    algebra = [check for check in checks if isinstance(check, AlgebraCheck)]
    try:
        for check in algebra:
            check.finish()
    finally:
        for check in algebra:
            check.close()


@contextmanager
def golds_checked(rewards: Sequence[RewardConfig]) -> Iterator[Sequence[Callable[[Row], None]]]:
    """The checks of `gold_checks`, and `finish_golds` at the end of the block if nothing was wrong before."""
    checks = gold_checks(rewards)
    try:
        yield checks
        finish_golds(checks)
    finally:
        for check in checks:
            if isinstance(check, AlgebraCheck):
                check.close()


class GoldCheck:
    """Parses the column of a row."""

    def __init__(self, column: str, parse: Callable[[Any], Any], who: str) -> None:
        """Prepares the check.

        Args:
            column: name or dotted path.
            parse: raises DataError for a value that is not one answer.
            who: names the reward in errors.
        """
        self._column = column
        self._parse = parse
        self._who = who

    def __call__(self, row: Row) -> None:
        """Checks a row.

        Raises:
            DataError: naming the row, the reward, the column and its value.
        """
        try:
            value = column_value(row.columns, self._column)
        except KeyError:
            return  # the check of columns says so
        try:
            self._parse(value)
        except DataError as error:
            raise self.error(row.id, str(error)) from error

    def error(self, row_id: str, what: str) -> DataError:
        """What is wrong with a row."""
        return DataError(f"{row_id}: column {self._column!r}, which {self._who} compares with: {what}")


class AlgebraCheck(GoldCheck):
    """Parses the column of a row as mathematics; what takes sympy in worker processes, each value once."""

    def __init__(self, column: str, who: str) -> None:
        """Prepares the check; the first gold that takes algebra starts a worker process."""
        super().__init__(column, math_gold, who)
        self._seen: set[str] = set()
        self._waiting: list[tuple[str, Any, Future[Any]]] = []
        self._pool: Pool | None = None
        self._processes = default_processes()
        self._lock = threading.Lock()

    def __call__(self, row: Row) -> None:
        """Checks a row, and takes in what the worker processes have found of earlier ones."""
        super().__call__(row)
        try:
            value = column_value(row.columns, self._column)
        except KeyError:
            return
        gold = math_gold(value)
        with self._lock:
            if gold is not None and needs_algebra(gold) and gold not in self._seen:
                self._seen.add(gold)
                self._waiting.append((row.id, value, self._submit(value)))
            self._collect(most=IN_FLIGHT)

    def finish(self) -> None:
        """Waits for all golds that are parsed in worker processes.

        Raises:
            DataError: of the first row that is wrong.
        """
        with self._lock:
            self._collect(most=0)

    def close(self) -> None:
        """Ends the worker processes. Rows that are checked later, in the background of training, take one at most."""
        with self._lock:
            pool, self._pool, self._processes = self._pool, None, 1
            self._waiting.clear()
        if pool is not None:
            pool.close()

    def _submit(self, value: Any) -> Future[Any]:
        if self._pool is None:
            self._pool = Pool(self._processes, make=partial(Worker, memory_bytes=VERIFIER_BYTES))
        return self._pool.submit("ray_rl.rewards.functions.math_answers:check_golds", timeout_s=GOLD_S, args=[[value]])

    def _collect(self, *, most: int) -> None:
        """Takes in what is done, and waits until at most so many are left."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][2].done()):
            row_id, value, call = self._waiting.pop(0)
            try:
                (problem,) = call.result()  # bound: a call of a worker process, which has a limit
            except (SandboxError, TimeoutError) as error:
                raise self.error(
                    row_id,
                    f"the answer {shorten(value)} cannot be parsed as an expression within {GOLD_S:g} s ({error}); "
                    "simplify it, or remove the row",
                ) from error
            if problem is not None:
                raise self.error(row_id, problem)


class FunctionCheck:
    """Checks at the first row that a user's function gets every parameter that it needs."""

    def __init__(self, reward: CustomReward, key: str) -> None:
        """Prepares the check; the first row imports the function."""
        self._reward = reward
        self._key = key
        self._is_done = False

    def __call__(self, row: Row) -> None:
        """Checks the function with the columns of a row.

        Raises:
            ConfigError: it needs another parameter, or cannot be imported.
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
        check_call(
            reward.function,
            "ray_rl.rewards.functions.custom:check_users",
            key=self._key,
            kwargs={"signature": reward.signature, "columns": list(row.columns), "options": list(reward.options)},
        )
