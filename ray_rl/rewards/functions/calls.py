"""Calls of the reward functions over the completions of a prompt: in this process, or in worker processes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Literal

from ray_rl.config.loading.redact import hide, secrets_of
from ray_rl.errors import (
    ConfigError,
    DataError,
    NotLoaded,
    ProcessDied,
    RewardError,
    SandboxClosed,
    SandboxError,
    UserError,
)
from ray_rl.isolation.importing import import_function
from ray_rl.isolation.pool import Pool
from ray_rl.isolation.worker import Worker
from ray_rl.metrics.metric import Mean, Metric, Total
from ray_rl.rewards.functions.custom import Call
from ray_rl.rewards.functions.parts import VERIFIER_BYTES, RewardPart
from ray_rl.rewards.judge import Judgement
from ray_rl.types import Prompt, Rollout, RolloutGroup, column_value

Verdict = float | None | RewardError
"""What one part says of one completion; the error is raised or counted, as the part is configured."""

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Group:
    """The rollouts of a prompt, and what reward functions get of them by name."""

    prompt: Prompt
    completions: Sequence[Rollout]

    @cached_property
    def columns(self) -> Mapping[str, list[Any]]:
        """One entry a completion: the columns of the row, and those of the completions."""
        columns = {name: [value] * len(self.completions) for name, value in self.prompt.columns.items()}
        columns["prompts"] = [self.prompt.text] * len(self.completions)
        columns["finish_reasons"] = [completion.stop for completion in self.completions]
        columns["lengths"] = [completion.sampled_tokens for completion in self.completions]
        return columns


class PartCalls:
    """One part of the reward with its worker processes. Safe to call from several threads."""

    def __init__(self, part: RewardPart) -> None:
        """Prepares the worker processes; the first call starts one."""
        self.part = part
        make = Worker if part.users else partial(Worker, memory_bytes=VERIFIER_BYTES)
        self._pool = Pool(part.processes, make=make) if part.processes else None

    def close(self) -> None:
        """Ends the worker processes, and calls in flight with them."""
        if self._pool is not None:
            self._pool.close()

    async def judge(self, group: RolloutGroup) -> list[Judgement]:
        """Calls the function in a thread, so that the event loop continues; see `Judge`."""
        return await asyncio.to_thread(self._judge, Group(group.prompt, group.rollouts))

    def _judge(self, group: Group) -> list[Judgement]:
        verdicts, metrics = self._verdicts(group)
        errors = [verdict for verdict in verdicts if isinstance(verdict, RewardError)]
        if self.part.on_error == "skip":
            metrics = [*metrics, Total(f"reward/{self.part.name}_errors", len(errors))]
        elif errors:
            raise errors[0]
        first, *others = [Judgement(None if isinstance(verdict, RewardError) else verdict) for verdict in verdicts]
        return [Judgement(first.score, tuple(metrics)), *others]

    def _verdicts(self, group: Group) -> tuple[list[Verdict], list[Metric]]:
        """What the part says of each completion, and what it counts and logs.

        Raises:
            ConfigError: it needs a column that the prompt does not have.
        """
        if self.part.users:
            return self._of_users(group)
        if self._pool is None:
            return [verdict for index in range(len(group.completions)) for verdict in self._here(group, index)], []
        return self._of_verifier(group, self._pool)

    def _here(self, group: Group, index: int) -> list[Verdict]:
        keywords = verifier_keywords(self.part, group, [index])
        try:
            returned = import_function(self.part.function)([group.completions[index].text], **keywords)
        except DataError as cause:
            return [self._error(group, [index], str(cause), cause)]
        return list(returned)

    # A verifier of ours: what the policy wrote can neither end the run nor lose the scores of the others.

    def _of_verifier(self, group: Group, pool: Pool) -> tuple[list[Verdict], list[Metric]]:
        verdicts: dict[int, Verdict] = {}
        calls: dict[int, Future[Any]] = {}
        unverified = 0
        try:
            for index in range(len(group.completions)):
                quick = self._quick(group, index)
                if quick == "undecided":
                    calls[index] = self._submit(group, index, pool)
                else:
                    verdicts[index] = quick
            for index, call in calls.items():
                verdict = self._verified(group, index, call, pool)
                unverified += verdict == "unverified"
                verdicts[index] = 0.0 if verdict == "unverified" else verdict
        finally:
            for call in calls.values():
                call.cancel()
        counted = Total(f"reward/{self.part.name}_unverified", unverified)
        return [verdicts[index] for index in range(len(group.completions))], [counted]

    def _quick(self, group: Group, index: int) -> Verdict | Literal["undecided"]:
        if self.part.quick is None:
            return "undecided"
        keywords = verifier_keywords(self.part, group, [index])
        try:
            (verdict,) = import_function(self.part.quick)([group.completions[index].text], **keywords)
        except DataError as cause:
            return self._error(group, [index], str(cause), cause)
        return verdict  # type: ignore[no-any-return]

    def _submit(self, group: Group, index: int, pool: Pool) -> Future[Any]:
        return pool.submit(
            self.part.function,
            timeout_s=self.part.timeout_s,
            args=[[group.completions[index].text]],
            kwargs=verifier_keywords(self.part, group, [index]),
        )

    def _verified(self, group: Group, index: int, call: Future[Any], pool: Pool) -> Verdict | Literal["unverified"]:
        """The verdict of a call. A process that was killed, whoever did it, is asked once more."""
        try:
            try:
                (verdict,) = call.result()  # bound: a call of a worker process, which has a limit
            except ProcessDied:
                # bound: a call of a worker process, which has a limit
                (verdict,) = self._submit(group, index, pool).result()
        except (DataError, NotLoaded, SandboxClosed, CancelledError) as cause:
            return self._error(group, [index], str(cause), cause)
        except (SandboxError, TimeoutError):
            return "unverified"
        return verdict if _is_opinion(verdict) else "unverified"

    # A user's function.

    def _of_users(self, group: Group) -> tuple[list[Verdict], list[Metric]]:
        everyone = range(len(group.completions))
        logged: list[Metric] = []
        together = self._call(group, everyone, logged)
        failure = together[0]
        if isinstance(failure, RewardError) and isinstance(failure.__cause__, ProcessDied):
            together = self._call(group, everyone, logged)  # somebody else may have killed it
            failure = together[0]
        is_together = len(together) > 1 and isinstance(failure, RewardError) and failure.__cause__ is not None
        if is_together and self.part.on_error == "stop":
            return [self._culprit(group) or failure], logged
        return together, logged

    def _culprit(self, group: Group) -> RewardError | None:
        """The error of the first completion that fails alone, after a call over all failed, or None."""
        until_s = math.inf
        for index in range(len(group.completions)):
            (verdict,) = self._call(group, [index], [])
            if isinstance(verdict, RewardError):
                return verdict
            if time.monotonic() > until_s:
                break
            until_s = min(until_s, time.monotonic() + self.part.timeout_s)  # not with the import before the first
        return None

    def _call(self, group: Group, indices: Sequence[int], logged: list[Metric]) -> list[Verdict]:
        """One call of a user's function over some completions of the group."""
        part, pool = self.part, self._pool
        assert pool is not None, "a user's function runs in a process of its own"
        given = _users_call(part, group, indices)
        try:
            call = pool.submit(
                "ray_rl.rewards.functions.custom:call_users",
                timeout_s=part.timeout_s,
                args=[part.function],
                kwargs={"signature": part.signature, "call": given},
                load=[part.function],
                named=part.function,
            )
            returned, count, metrics = call.result()  # bound: a call of a worker process, which has a limit
        except (SandboxError, TimeoutError, UserError, CancelledError) as cause:
            return [self._error(group, indices, str(cause), cause)] * len(indices)
        if count != len(indices):
            what = f"{part.function} returned {count} values for {len(indices)} completions, not one for each"
            return [self._error(group, indices, what)] * len(indices)
        logged += [Mean(f"reward/{part.name}_{name}", value, 1) for name, value in metrics.items()]
        return [
            value if _is_opinion(value) else self._error(group, [index], f"{part.function} returned {value}")
            for index, value in zip(indices, returned, strict=True)
        ]

    def _error(
        self, group: Group, indices: Sequence[int], what: str, cause: BaseException | None = None
    ) -> RewardError:
        part = self.part
        text = group.completions[indices[0]].text
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
        count = len(group.completions)
        which = (
            f"completion {indices[0]} of {count}: " if len(indices) == 1 else f"all {count} completions, the first: "
        )
        what = hide(what, secrets_of(part.options))
        error = RewardError(
            f"reward {part.name!r}, prompt {group.prompt.id}, {which}{shown!r}: {what}. "
            "Correct the function or the data, or set on_error: skip to continue without an opinion"
        )
        error.__cause__ = cause
        return error


def verifier_keywords(part: RewardPart, group: Group, indices: Sequence[int]) -> dict[str, Any]:
    """The keywords of a verifier of ours for some completions.

    Raises:
        ConfigError: the prompt lacks a column.
    """
    keywords: dict[str, Any] = {}
    for keyword, column in part.needs.items():
        if column in group.columns:
            keywords[keyword] = [group.columns[column][index] for index in indices]
            continue
        try:
            value = column_value(group.prompt.columns, column)
        except KeyError:
            existing = ", ".join(sorted(group.prompt.columns)) or "none"
            raise ConfigError(
                f"reward {part.name!r} needs a column {column!r}; prompt {group.prompt.id} has {existing}; "
                "name one of them in the reward, or rename one with data.columns"
            ) from None
        keywords[keyword] = [value] * len(indices)
    return keywords | dict(part.options)


def _users_call(part: RewardPart, group: Group, indices: Sequence[int]) -> Call:
    taken = sorted(group.columns.keys() & part.options.keys())
    if taken:
        raise ConfigError(f"reward {part.name!r}: options {', '.join(taken)} are columns too; rename the options")
    completions = [group.completions[index] for index in indices]
    prompt = group.prompt
    return Call(
        completions=[completion.text for completion in completions],
        columns={name: [column[index] for index in indices] for name, column in group.columns.items()},
        options=part.options,
        conversation=[asdict(message) for message in prompt.messages] if prompt.is_conversation else None,
        replies=[[asdict(message) for message in completion.messages] for completion in completions],
        token_ids=[completion.token_ids.astype("int32").tobytes() for completion in completions],
        version=max(
            (int(completion.versions[-1]) for completion in completions if len(completion.versions)), default=0
        ),
    )


def _is_opinion(value: float | str | None) -> bool:
    return value is None or (isinstance(value, float) and abs(value) < float("inf"))
