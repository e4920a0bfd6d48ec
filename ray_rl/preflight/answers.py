"""Calls to many nodes of which some may not answer: what each said, and why the others did not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

Key = TypeVar("Key", bound=Hashable)

FETCH_S = 10.0
"""For the value of a call that is done to come here: a few numbers."""

REASON_CHARACTERS = 300
"""Of a message of Ray's, which may be a page long."""


@dataclass(frozen=True, slots=True)
class Answers(Generic[Key]):
    """What came of one call to each."""

    results: dict[Key, Any]
    failures: dict[Key, str]
    """Why the others gave none."""


def gather(refs: Mapping[Key, ray.ObjectRef[Any]], *, timeout_s: float) -> Answers[Key]:
    """Waits for all together; who is not done by then has failed."""
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
