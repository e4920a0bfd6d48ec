"""Calls a user's reward function with the arguments that its parameters name. Runs in a worker process.

Three signatures are known:

    ray_rl  (completions, **columns) -> list
    trl     (prompts, completions, **columns) -> list
    verl    (data_source, solution_str, ground_truth, extra_info=None) -> number or {"score": number, ...}

Each may be `async`. docs/rewards.md describes the contract.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray_rl.data.columns import NAMING, shorten
from ray_rl.errors import ConfigError
from ray_rl.isolation.importing import import_function
from ray_rl.rewards.functions.plain import plain_scores
from ray_rl.types import column_value

Signature = Literal["ray_rl", "trl", "verl"]

TRL_ONLY = frozenset({"completion_ids", "trainer_state", "log_extra", "log_metric"})
"""Parameters that only TRL passes."""
GROUND_TRUTHS = ("reward_model.ground_truth", "ground_truth", "answer", "solution", "label")
"""Columns that may hold verl's ground truth, in the order in which they are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The completions of one prompt, and everything that a function may ask about them. One entry per completion."""

    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    """Columns of the row, with `prompts`, `finish_reasons` and `lengths`."""
    options: Mapping[str, Any]
    conversation: Sequence[Mapping[str, str]] | None
    """The messages of the prompt; None if the row has text."""
    replies: Sequence[Sequence[Mapping[str, str]]]
    """Each completion as messages: one message of the assistant, unless an environment answered."""
    token_ids: Sequence[bytes]
    """int32 tokens of each completion."""
    version: int
    """Number of optimizer steps of the policy that sampled."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The training state that functions for TRL can read."""

    global_step: int


Returned = tuple[list[float | str | None], int, dict[str, float]]
"""Scores, the number of values that the function returned, and what it logged."""


def call_users(path: str, *, signature: Signature | None, call: Call) -> Returned:
    """Returns the scores of the completions, and what the function logged with `log_metric`.

    Args:
        path: the import path of the function.
        signature: how to call it; None derives it from its parameters.
        call: the values to pass.

    Returns:
        For each completion a float or None, or the repr of a value that is neither; the number of values that the
        function returned; and {name: value} for what it logged.

    Raises:
        ConfigError: the function needs an unknown parameter.
        TypeError: it did not return a list, or for verl a number.
    """
    function = import_function(path)
    logged: dict[str, float] = {}
    match signature or signature_of(function):
        case "verl":
            returned = _call_verl(function, path, call)
        case "trl":
            returned = _result(function(**_accepted(function, path, _trl_keywords(call, logged))))
        case _:
            completions = list(call.completions)
            if _takes_by_position(function):
                keywords = _accepted(function, path, {**call.columns, **call.options}, positional=1)
                returned = _result(function(completions, **keywords))
            else:
                keywords = _accepted(function, path, {**call.columns, **call.options, "completions": completions})
                returned = _result(function(**keywords))
    return *plain_scores(returned, expected=len(call.completions)), logged


def check_users(path: str, *, signature: Signature | None, columns: Sequence[str], options: Sequence[str]) -> None:
    """Checks that every parameter without a default is known.

    Args:
        path: the import path of the function.
        signature: how it will be called; None derives it from its parameters.
        columns: names of the columns of a row.
        options: names of the options.

    Raises:
        ConfigError: a parameter is unknown.
    """
    function = import_function(path)
    known = {"prompts", "finish_reasons", "lengths", *columns, *options}
    match signature or signature_of(function):
        case "verl":
            known = {"data_source", "solution_str", "ground_truth", "extra_info", *options}
            _accepted(function, path, dict.fromkeys(known))
        case "trl":
            _accepted(function, path, dict.fromkeys(known | TRL_ONLY | {"completions"}))
        case _:
            if _takes_by_position(function):
                _accepted(function, path, dict.fromkeys(known), positional=1)
            elif "completions" not in _accepted(function, path, dict.fromkeys(known | {"completions"})):
                raise ConfigError(
                    f"{path} takes no completions; write it as (completions, **columns), or as another system's "
                    "function: docs/rewards.md"
                )


def signature_of(function: Callable[..., Any]) -> Signature:
    """Derives from the parameters of a function how it is called."""
    names = list(_parameters(function))
    if {"solution_str", "ground_truth"} <= set(names):
        return "verl"
    if TRL_ONLY & set(names):
        return "trl"
    if "prompts" in names and "completions" in names[names.index("prompts") :]:
        return "trl"
    return "ray_rl"


def _takes_by_position(function: Callable[..., Any]) -> bool:
    """Returns whether the completions can be the first argument; if not, they are passed by name."""
    first = next(iter(_parameters(function).values()), None)
    return first is not None and first.kind not in (first.KEYWORD_ONLY, first.VAR_KEYWORD)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # native code may not tell its parameters
        return {
            "completions": inspect.Parameter("completions", inspect.Parameter.POSITIONAL_ONLY),
            "columns": inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD),
        }


def _accepted(
    function: Callable[..., Any], path: str, keywords: Mapping[str, Any], *, positional: int = 0
) -> dict[str, Any]:
    """Returns the keywords that a function takes.

    Raises:
        ConfigError: it needs another keyword.
    """
    parameters = list(_parameters(function).values())
    by_name = [each for each in parameters[positional:] if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    missing = [each.name for each in by_name if each.default is each.empty and each.name not in keywords]
    if missing:
        raise ConfigError(
            f"{path}: the parameter {', '.join(missing)} is neither a column nor an option; known names are "
            f"{', '.join(sorted(keywords)) or 'none'}; add it to the options or the columns: {NAMING}"
        )
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        taken = {each.name for each in parameters[:positional]}
        return {name: value for name, value in keywords.items() if name not in taken}
    names = {each.name for each in by_name}
    return {name: value for name, value in keywords.items() if name in names}


def _trl_keywords(call: Call, logged: dict[str, float]) -> dict[str, Any]:
    """Returns the keywords as TRL passes them: prompts and completions are messages if the row has messages."""
    completions: list[Any] = list(call.completions)
    prompts: list[Any] = list(call.columns["prompts"])
    if call.conversation is not None:
        completions = [[dict(message) for message in reply] for reply in call.replies]
        prompts = [[dict(message) for message in call.conversation] for _ in completions]

    def log_metric(name: str, value: float) -> None:
        logged[name] = float(value)

    def log_extra(column: str, values: Sequence[Any]) -> None:
        """Does nothing: every sample is already on disk with its columns."""

    return {
        **call.columns,
        **call.options,
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [array.array("i", tokens).tolist() for tokens in call.token_ids],
        "trainer_state": TrainerState(call.version),
        "log_metric": log_metric,
        "log_extra": log_extra,
    }


def _call_verl(function: Callable[..., Any], path: str, call: Call) -> list[Any]:
    rows = [{name: values[index] for name, values in call.columns.items()} for index in range(len(call.completions))]
    calls = [
        _accepted(
            function,
            path,
            {
                **call.options,
                "data_source": row.get("data_source"),
                "solution_str": text,
                "ground_truth": _ground_truth(row, path),
                "extra_info": row.get("extra_info") or {},
            },
        )
        for text, row in zip(call.completions, rows, strict=True)
    ]
    if inspect.iscoroutinefunction(function):
        return [_verl_score(each) for each in asyncio.run(_together(function, calls))]
    return [_verl_score(_result(function(**keywords))) for keywords in calls]


async def _together(function: Callable[..., Awaitable[Any]], calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    # bound: runs in a worker process, whose call has a limit
    return list(await asyncio.gather(*(function(**keywords) for keywords in calls)))


def _ground_truth(row: Mapping[str, Any], path: str) -> Any:
    for name in GROUND_TRUTHS:
        with contextlib.suppress(KeyError):
            return column_value(row, name)
    raise ConfigError(
        f"{path} takes verl's ground_truth, and the row has none of {', '.join(GROUND_TRUTHS)}; name a column "
        f"ground_truth: {NAMING}"
    )


def _verl_score(returned: Any) -> Any:
    """Returns the score in the result of a function for verl."""
    if isinstance(returned, Mapping):
        if "score" not in returned:
            raise TypeError(f"returned {shorten(dict(returned))}, a mapping without 'score'")
        return returned["score"]
    return returned[0] if isinstance(returned, tuple) and returned else returned


def _result(returned: Any) -> Any:
    return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(returned: Awaitable[Any]) -> Any:
    return await returned
