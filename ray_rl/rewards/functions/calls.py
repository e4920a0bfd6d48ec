"""Calls reward functions on the completions of a prompt: in this process, or in worker processes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from ray_rl.config.loading.redact import hide, secrets_of
from ray_rl.data.columns import NAMING
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
from ray_rl.isolation.pool import Executor, Pool
from ray_rl.isolation.worker import Worker
from ray_rl.metrics.metric import Last, Mean, Metric, Total
from ray_rl.rewards.functions.custom import Call
from ray_rl.rewards.functions.parts import VERIFIER_BYTES, RewardPart
from ray_rl.rewards.judge import Judgement
from ray_rl.types import Prompt, Rollout, RolloutGroup, column_value

Verdict = float | None | RewardError
"""The result of one part for one completion. The setting `on_error` decides whether an error is raised or counted."""

_SHOWN_CHARACTERS = 200
_LEAST_THREADS, _MOST_THREADS = 4, 256

Elsewhere = Callable[[int], Sequence[Callable[[], Executor]]]
"""Returns what makes worker processes on other machines, for a memory limit in bytes of each process."""


class PartCalls:
    """Calls one entry of `rewards:`, with its worker processes if it has any. Thread-safe."""

    def __init__(self, part: RewardPart, *, elsewhere: Elsewhere | None = None) -> None:
        """Makes the pool of worker processes; the first call starts one. Only verifiers of ours run elsewhere."""
        self.part = part
        make = Worker if part.users else partial(Worker, memory_bytes=VERIFIER_BYTES)
        others = elsewhere(VERIFIER_BYTES) if elsewhere is not None and part.processes and not part.users else ()
        self._pool = Pool(part.processes, make=make, others=others) if part.processes else None
        processes = part.processes + len(others)
        # Threads of its own: a thread waits for the calls of one prompt. The event loop's threads may be fewer than the
        # processes, and checkpoints need them. Twice as many, so that the next calls wait for a process that gets free.
        most = min(max(_LEAST_THREADS, 2 * processes), _MOST_THREADS)
        self._threads = ThreadPoolExecutor(most, thread_name_prefix=f"ray-rl-reward-{part.name}")
        self._asked_s, self._asked_busy_s = time.perf_counter(), 0.0
        self._judged, self._judging_s = 0, 0.0

    def close(self) -> None:
        """Ends the worker processes, and calls in flight with them."""
        self._threads.shutdown(wait=False)
        if self._pool is not None:
            self._pool.close()

    def metrics(self) -> list[Metric]:
        """Returns how busy the worker processes were since the last call, how long prompts took, and how many exist."""
        if self._pool is None:
            return []
        before_s, before_busy_s = self._asked_s, self._asked_busy_s
        self._asked_s, self._asked_busy_s = time.perf_counter(), self._pool.busy_s
        possible_s = (self._asked_s - before_s) * self._pool.most
        judged, judging_s = self._judged, self._judging_s
        self._judged, self._judging_s = 0, 0.0
        name = f"throughput/reward_{self.part.name}"
        return [
            Mean(f"{name}_busy_fraction", self._asked_busy_s - before_busy_s, possible_s),
            Mean(f"{name}_s_per_prompt", judging_s, judged),
            Last(f"{name}_processes", self._pool.most),
        ]

    async def judge(self, group: RolloutGroup) -> list[Judgement]:
        """Calls the function in a thread, so that the event loop continues; see `Judge`."""
        begun_s = time.perf_counter()
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._judge, group)
        self._judged += 1
        self._judging_s += time.perf_counter() - begun_s
        return found

    def _judge(self, group: RolloutGroup) -> list[Judgement]:
        verdicts, metrics = self._verdicts(group)
        errors = [verdict for verdict in verdicts if isinstance(verdict, RewardError)]
        if self.part.on_error == "skip":
            metrics = [*metrics, Total(f"reward/{self.part.name}_errors", len(errors))]
        elif errors:
            raise errors[0]
        first, *others = [Judgement(None if isinstance(verdict, RewardError) else verdict) for verdict in verdicts]
        return [Judgement(first.score, tuple(metrics)), *others]

    def _verdicts(self, group: RolloutGroup) -> tuple[list[Verdict], list[Metric]]:
        """Returns the verdict on each completion, and the metrics of the part.

        Raises:
            ConfigError: the part needs a column that the prompt does not have.
        """
        if self.part.users:
            return self._of_users(group)
        if self._pool is None:
            return [self._here(self.part.function, group, index) for index in range(len(group.rollouts))], []
        return self._of_verifier(group, self._pool)

    def _here(self, function: str, group: RolloutGroup, index: int) -> Any:
        """Returns what a function of ours returns for one completion, called in this process; or its error."""
        keywords = _verifier_keywords(self.part, group, index)
        try:
            (verdict,) = import_function(function)([group.rollouts[index].text], **keywords)
        except DataError as cause:
            return self._error(group, [index], str(cause), cause)
        return verdict

    # The next three methods call a verifier of ours. The text of a completion must not end the run, nor lose the
    # scores of the other completions.

    def _of_verifier(self, group: RolloutGroup, pool: Pool) -> tuple[list[Verdict], list[Metric]]:
        verdicts: dict[int, Verdict] = {}
        calls: dict[int, Future[Any]] = {}
        unverified = 0
        try:
            for index in range(len(group.rollouts)):
                quick: Any = "undecided" if self.part.quick is None else self._here(self.part.quick, group, index)
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
        return [verdicts[index] for index in range(len(group.rollouts))], [counted]

    def _submit(self, group: RolloutGroup, index: int, pool: Pool) -> Future[Any]:
        return pool.submit(
            self.part.function,
            timeout_s=self.part.timeout_s,
            args=[[group.rollouts[index].text]],
            kwargs=_verifier_keywords(self.part, group, index),
        )

    def _verified(
        self, group: RolloutGroup, index: int, call: Future[Any], pool: Pool
    ) -> Verdict | Literal["unverified"]:
        """Returns the verdict of a call. If its process was killed, for any reason, repeats the call once."""
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

    # The next three methods call a user's function.

    def _of_users(self, group: RolloutGroup) -> tuple[list[Verdict], list[Metric]]:
        everyone = range(len(group.rollouts))
        logged: list[Metric] = []
        together = self._call(group, everyone, logged)
        failure = together[0]
        if isinstance(failure, RewardError) and isinstance(failure.__cause__, ProcessDied):
            together = self._call(group, everyone, logged)  # the process may have been killed from outside
            failure = together[0]
        is_together = len(together) > 1 and isinstance(failure, RewardError) and failure.__cause__ is not None
        if is_together and self.part.on_error == "stop":
            return [self._culprit(group) or failure], logged
        return together, logged

    def _culprit(self, group: RolloutGroup) -> RewardError | None:
        """Returns the error of the first completion that fails alone, after a call on all of them failed, or None."""
        until_s = math.inf
        for index in range(len(group.rollouts)):
            (verdict,) = self._call(group, [index], [])
            if isinstance(verdict, RewardError):
                return verdict
            if time.monotonic() > until_s:
                break
            # The limit starts after the first call, because that one may import the module.
            until_s = min(until_s, time.monotonic() + self.part.timeout_s)
        return None

    def _call(self, group: RolloutGroup, indices: Sequence[int], logged: list[Metric]) -> list[Verdict]:
        """Calls a user's function once, on some completions of the group, and adds what it logs to `logged`."""
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
        self, group: RolloutGroup, indices: Sequence[int], what: str, cause: BaseException | None = None
    ) -> RewardError:
        part = self.part
        text = group.rollouts[indices[0]].text
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
        count = len(group.rollouts)
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


def _columns_of(prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
    """Returns the columns of the row, and what reward functions get about a rollout by name."""
    own = {"prompts": prompt.text, "finish_reasons": rollout.stop, "lengths": rollout.sampled_tokens}
    return {**prompt.columns, **own}


def _verifier_keywords(part: RewardPart, group: RolloutGroup, index: int) -> dict[str, Any]:
    """Returns the keywords for a call of a verifier of ours on one completion.

    Raises:
        ConfigError: the prompt lacks a column.
    """
    columns = _columns_of(group.prompt, group.rollouts[index])
    keywords: dict[str, Any] = dict(part.options)
    for keyword, column in part.needs.items():
        try:
            keywords[keyword] = [column_value(columns, column)]
        except KeyError:
            existing = ", ".join(sorted(group.prompt.columns)) or "none"
            raise ConfigError(
                f"reward {part.name!r} needs a column {column!r}; prompt {group.prompt.id} has {existing}; "
                f"name one of them in the reward, or give one this name: {NAMING}"
            ) from None
    return keywords


def _users_call(part: RewardPart, group: RolloutGroup, indices: Sequence[int]) -> Call:
    prompt, completions = group.prompt, [group.rollouts[index] for index in indices]
    rows = [_columns_of(prompt, completion) for completion in completions]
    taken = sorted(rows[0].keys() & part.options.keys())
    if taken:
        raise ConfigError(f"reward {part.name!r}: options {', '.join(taken)} are columns too; rename the options")
    return Call(
        completions=[completion.text for completion in completions],
        columns={name: [row[name] for row in rows] for name in rows[0]},
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
