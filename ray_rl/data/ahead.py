"""Checks many rows: before the start for a limited time, and in the background of training."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from ray_rl.errors import DataError, UserError

SHOWN_FAULTS = 5
"""The most wrong rows in a message: the first with its error, the others only by their place."""
PROGRESS_S = 10.0
"""Seconds between two progress messages."""
SHARE = 0.05
"""Share of a core that checks use during training: about 100 rows per second, many times more than a run needs."""

FOUND_LATE = (
    "This row was found in the background of training, before it was used. To continue without such rows: resume with "
    "data.on_bad_row=skip"
)

Check = Callable[[int], object]
"""Raises DataError if the row of this index is wrong."""


def check_rows(check: Check, order: Iterable[int], *, until: float, say: Callable[[str], None], what: str) -> bool:
    """Checks rows until the time is over; returns whether all were checked.

    Args:
        check: the check of one row.
        order: indices of the rows.
        until: when to stop, on the clock of `time.monotonic`.
        say: called with the progress of long checks.
        what: the past participle for `say`: "read" or "checked".

    Raises:
        DataError: rows are wrong; the message has the first row with its error, and the places of the others.
    """
    start = told = time.monotonic()
    faults: dict[int, DataError] = {}
    is_complete = True
    for count, index in enumerate(order):
        now = time.monotonic()
        if now > until or len(faults) == SHOWN_FAULTS:
            is_complete = False
            break
        if now - told > PROGRESS_S:
            say(f"data: {count:,} rows {what} in {now - start:.0f} s")
            told = now
        try:
            check(index)
        except DataError as error:
            faults[index] = error
    if faults:
        raise as_one(faults, is_complete=is_complete)
    return is_complete


class Lookahead:
    """Checks rows in a thread during training, in the order in which they will be used.

    It only reads rows, so that training does not depend on its progress.
    """

    def __init__(self, check: Check, *, done: set[int]) -> None:
        """Makes the checks; `watch` starts the thread.

        Args:
            check: the check of one row; called in the thread.
            done: indices of rows that need no check.
        """
        self._check = check
        self._done = done
        self._found: DataError | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, upcoming: Callable[[], Iterable[int]]) -> None:
        """Starts the thread at the first call. Every call raises errors that were found since the last call.

        Args:
            upcoming: returns the indices of all rows, in the order of their first use.

        Raises:
            DataError: a row is wrong; the message names it.
        """
        if self._thread is None:
            order = [index for index in upcoming() if index not in self._done]
            self._thread = threading.Thread(target=self._run, args=(order,), name="data-lookahead", daemon=True)
            self._thread.start()
        if self._found is not None:
            raise self._found

    def settle(self, *, timeout_s: float) -> bool:
        """Waits until all rows are checked or one is wrong; returns False if the time ran out before."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is not None and not self._thread.is_alive()

    def close(self) -> None:
        """Ends the checks after the row that is being checked."""
        self._ended.set()

    def _run(self, order: list[int]) -> None:
        for index in order:
            start = time.thread_time()
            try:
                self._check(index)
            except UserError as error:
                self._found = DataError(f"{error}\n{FOUND_LATE}")
                return
            took = time.thread_time() - start
            # The interpreter runs one thread at a time: the rest of the time is the driver's.
            if self._ended.wait(timeout=max(took / SHARE - took, 0.001)):
                return


def as_one(faults: Mapping[int, DataError], *, is_complete: bool) -> DataError:
    """Returns one error for several wrong rows: the first with its error, the others by their place.

    Args:
        faults: the error of each wrong row, by its index.
        is_complete: whether all rows were checked.
    """
    first, *others = (str(faults[index]) for index in sorted(faults))
    if not others:
        return DataError(first)
    # A message starts with the place of its row: "train.jsonl:3: ", "train.parquet: row 3: ".
    places = ", ".join(re.split(r": (?!row \d+: )", other, maxsplit=1)[0] for other in others)
    number = "1 more row is" if len(others) == 1 else f"{len(others)} more rows are"
    return DataError(f"{first}\n{'' if is_complete else 'at least '}{number} wrong: {places}")
