"""Attempts of a run: their names, and when another attempt follows one that ended."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ray_rl.exit_codes import BAD_INPUT, CHECKPOINTED, DONE


def attempt_id(run: str, attempt: int) -> str:
    """Returns the name of an attempt: grpo-addition-1."""
    return f"{run}-{attempt}"


def attempts_of(run: str, ids: Iterable[str]) -> list[int]:
    """Returns the numbers of the attempts of a run among the names of jobs, ascending."""
    matches = (re.fullmatch(rf"{re.escape(run)}-([1-9][0-9]*)", each) for each in ids)
    return sorted(int(match[1]) for match in matches if match)


def is_countable(code: int) -> bool:
    """Returns whether an attempt counts against `launch.retries`: it failed, and another one may succeed."""
    return code not in (DONE, BAD_INPUT, CHECKPOINTED)


def is_tried_again(code: int, *, failures: int, retries: int) -> bool:
    """Returns whether another attempt follows one that ended by itself.

    Args:
        code: exit code of the driver, or 1 if the driver was lost with its node.
        failures: countable attempts, this one included.
        retries: `launch.retries`.
    """
    return code == CHECKPOINTED or (is_countable(code) and failures <= retries)
