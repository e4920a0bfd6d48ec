"""Calls many nodes, of which some may not answer: collects the answers, and why the others failed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

Key = TypeVar("Key", bound=Hashable)

FETCH_S = 10.0
"""Limit for fetching the result of a finished call, which is a few numbers."""

REASON_CHARACTERS = 300
"""The most characters of a message from Ray, which may be a page long."""


@dataclass(frozen=True, slots=True)
class Answers(Generic[Key]):
    """The results and failures of one call to each node."""

    results: dict[Key, Any]
    failures: dict[Key, str]
    """Why the other calls have no result."""


def gather(refs: Mapping[Key, ray.ObjectRef[Any]], *, timeout_s: float) -> Answers[Key]:
    """Waits for all calls together; a call that is not done within the limit has failed."""
    results: dict[Key, Any] = {}
    failures: dict[Key, str] = {}
    done: list[ray.ObjectRef[Any]] = []
    if refs:
        done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout_s)
    for key, ref in refs.items():
        if ref not in done:
            failures[key] = f"nothing within {timeout_s:g} s"
            continue
        try:
            results[key] = ray.get(ref, timeout=FETCH_S)
        except RayError as error:  # also its GetTimeoutError
            failures[key] = _reason(error)
    return Answers(results, failures)


def _reason(error: RayError) -> str:
    text = f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
    line = " ".join(text.split())
    return line if len(line) <= REASON_CHARACTERS else f"{line[:REASON_CHARACTERS]}..."
