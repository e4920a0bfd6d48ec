"""Audits engines after a publish: do they serve the weights that they received, and do these act like the policy?

Every publish is proved byte by byte before the weights are loaded (`proof`). An audit checks the loaded weights from
time to time:

- Checksums of the loaded weights must be equal on all engines. For weights that exist only in packed kernels (vLLM's
  CPU build packs most linear layers) the checksum is that of an empty tensor and proves nothing:
  `sync/checksums_proved` is the share of weights with a meaningful checksum. The matrices of an adapter in vLLM's
  buffers have digests and are compared with them.
- A canary is one fixed prompt. Every engine answers it, and the trainer computes log-probabilities of the answer. In
  float32 the canary detects weights that are one step of 1e-6 old (a gap of 6e-4 instead of 4e-6, measured). In
  bfloat16 it cannot detect a stale step (0.041 in both cases): there it judges only the first publish, and afterwards
  it is a number to plot. After the first publish it runs only with synchronous rollouts: otherwise it would wait for
  rollouts in flight, and training would wait for it. `sync/logprob_gap_max` is the same for trained tokens.
- The canary of the first publish, for any `audit_every`, checks that engine and trainer compute the same model: a
  different soft cap, scale or variant of attention would bias every ratio of the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ray_rl.concurrency import together
from ray_rl.errors import EngineLost, WeightMismatch
from ray_rl.metrics.metric import Last, Metric
from ray_rl.rollout.request import SampleRequest, Sampling
from ray_rl.types import Completion, TokenBatch, TrainBatch
from ray_rl.weight_sync.phases import Phases

if TYPE_CHECKING:
    from numpy.typing import NDArray

CANARY = "Name three colours, then count from one to five."
CANARY_TOKENS = 16
CANARY_SEED = 20260101
FLOAT32_GAP = 1e-2
"""Largest gap in a token's log-probability between two float32 implementations of one model, with a margin."""
BFLOAT16_GAP = 0.5
"""Largest mean gap of the canary's tokens in bfloat16: 12 times the measured mean (0.04), and more than the largest
measured gap of a single token (0.35)."""
EMPTY = hashlib.sha256(b"").hexdigest()
"""The checksum of a weight that exists only in a packed kernel."""

Seen = TypeVar("Seen")
Checksums = Sequence[Mapping[str, str]]
"""One mapping from parameters to checksums for each worker of an engine."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The difference between an engine's and the trainer's log-probabilities of the canary's answer."""

    mean: float
    largest: float
    token: int
    """Position of the token with the largest difference."""
    by_engine: float
    by_trainer: float


class AuditedEngine(Protocol):
    """The methods of an engine that an audit needs."""

    @property
    def name(self) -> str:
        """The name in messages."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """Returns the completions of one prompt."""

    async def checksums(self) -> Checksums:
        """Returns the SHA-256 of every loaded weight, and a digest of every matrix of an adapter."""


class Scorer(Protocol):
    """A model that gives log-probabilities."""

    async def logprobs(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Returns the log-probabilities of the loss tokens, float32 [R, T]; 0 elsewhere."""


class Publisher(Protocol):
    """Publishes weights to the engines."""

    async def publish(self, version: int) -> list[Metric]:
        """Publishes the weights as `version`, and returns when every engine serves them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """When to audit, and what a difference may come from."""

    every: int | None
    """Audit every so many versions; None: the first publish only."""
    is_synchronous: bool
    """Whether no rollout is in flight during a publish, so that engines answer the canary at once."""
    is_float32: bool
    """Whether the policy computes in float32; else bfloat16 explains larger gaps."""
    rows: int
    """Trainer ranks: each of them scores one row."""


class AuditedWeights:
    """Publishes, and audits every so many versions."""

    def __init__(
        self,
        settings: AuditSettings,
        weights: Publisher,
        *,
        actor: Scorer,
        phases: Phases,
        engines: Callable[[], Sequence[AuditedEngine]],
        prompt: tuple[int, ...],
        sampling: Sampling,
    ) -> None:
        """Makes a publisher with audits of the live engines.

        The canary is sampled as rollouts are, because the trainer computes log-probabilities at their temperature.
        """
        self._settings = settings
        self._weights = weights
        self._actor = actor
        self._phases = phases
        self._engines = engines
        self._prompt = prompt
        self._sampling = replace(sampling, max_tokens=min(sampling.max_tokens, CANARY_TOKENS), seed=CANARY_SEED)
        self._is_first = True

    async def publish(self, version: int) -> list[Metric]:
        """Publishes `version`, and audits the engines if that is due.

        Raises:
            WeightMismatch: engines differ from each other or, in float32 and in the first publish, from the trainer,
                and they still differ after a second publish.
        """
        metrics = await self._weights.publish(version)
        every = self._settings.every
        is_due = every is not None and version % every == 0
        if not (is_due or self._is_first):
            return metrics
        try:
            found = await self._audit(version, with_checksums=is_due)
        except WeightMismatch:
            metrics = await self._weights.publish(version)
            found = await self._audit(version, with_checksums=is_due)
        self._is_first = False
        return [*metrics, *found]

    async def _audit(self, version: int, *, with_checksums: bool) -> list[Metric]:
        metrics: list[Metric] = []
        if with_checksums:
            checksums = await self._of_all(lambda engine: engine.checksums())
            metrics = [Last("sync/checksums_proved", require_same(checksums))] if checksums else []
        if not (self._settings.is_synchronous or self._is_first):
            return metrics
        gaps = await self._gaps(version)
        is_float32 = self._settings.is_float32
        if is_float32 or self._is_first:
            require_close(gaps, version, is_float32=is_float32)
        if gaps:
            metrics.append(Last("sync/canary_gap_max", max(gap.largest for gap in gaps.values())))
        return metrics

    async def _of_all(self, ask: Callable[[AuditedEngine], Coroutine[Any, Any, Seen]]) -> dict[str, Seen]:
        """Returns the answers of the engines, by name, without engines that were lost in the meantime."""

        async def asked(engine: AuditedEngine) -> dict[str, Seen]:
            try:
                return {engine.name: await ask(engine)}
            except EngineLost:
                return {}

        answers = await together(asked(engine) for engine in self._engines())
        return {name: seen for answer in answers for name, seen in answer.items()}

    async def _gaps(self, version: int) -> dict[str, Gap]:
        """Returns the differences to the trainer in the log-probabilities of the canary's answers, by engine."""
        request = SampleRequest(f"canary/{version}", self._prompt, 1, self._sampling)
        answers = await self._of_all(lambda engine: engine.generate(request))
        await self._phases.train()
        gaps = {name: await self._gap(completion) for name, (completion,) in answers.items()}
        await self._phases.sample()
        return gaps

    async def _gap(self, completion: Completion) -> Gap:
        logprobs_RT = await self._actor.logprobs(batch_of(self._prompt, completion, rows=self._settings.rows))
        by_trainer_T = logprobs_RT[0, : len(completion.logprobs)]
        gap_T = np.abs(by_trainer_T - completion.logprobs)
        worst = int(gap_T.argmax())  # nan counts as the largest
        return Gap(
            mean=float(gap_T.mean()),
            largest=float(gap_T[worst]),
            token=int(completion.token_ids[worst]),
            by_engine=float(completion.logprobs[worst]),
            by_trainer=float(by_trainer_T[worst]),
        )


def batch_of(prompt: tuple[int, ...], completion: Completion, *, rows: int) -> TrainBatch:
    """Returns a batch whose rows are all one completion, so that every rank of the trainer gets a row."""
    tokens_RT = np.tile(completion.token_ids, (rows, 1))
    return TrainBatch(
        prompt_ids=(np.asarray(prompt, np.int32),),
        group_size=rows,
        tokens_RT=tokens_RT,
        lengths_R=np.full(rows, tokens_RT.shape[1], np.int32),
        sampled_R=np.full(rows, tokens_RT.shape[1], np.int32),
        loss_mask_RT=np.ones_like(tokens_RT, np.bool_),
        rollout_logprobs_RT=np.tile(completion.logprobs, (rows, 1)),
        rewards_R=np.zeros(rows, np.float32),
    )


def require_same(checksums: Mapping[str, Checksums]) -> float:
    """Compares the loaded weights of all engines, worker by worker.

    Returns:
        The share of weights with a meaningful checksum. A single engine has no other to compare with.

    Raises:
        WeightMismatch: two engines differ; the message names them and a parameter.
    """
    (first, expected), *others = checksums.items()
    for name, seen in others:
        for worker, (own, other) in enumerate(zip(seen, expected, strict=True)):
            wrong = sorted(key for key in {*own, *other} if own.get(key) != other.get(key))
            if wrong:
                raise WeightMismatch(
                    f"{name} and {first} have loaded different weights from one publish: {len(wrong)} of {len(other)}, "
                    f"the first {wrong[0]} (worker {worker})"
                )
    digests = [digest for worker in expected for digest in worker.values()]
    return sum(digest != EMPTY for digest in digests) / max(1, len(digests))


def require_close(gaps: Mapping[str, Gap], version: int, *, is_float32: bool) -> None:
    """Judges the canary: every token in float32, the mean of the tokens in bfloat16.

    Raises:
        WeightMismatch: the log-probabilities of an engine differ too much; the message has a token and both numbers.
    """
    for name, gap in gaps.items():
        seen, bound = (gap.largest, FLOAT32_GAP) if is_float32 else (gap.mean, BFLOAT16_GAP)
        if not seen <= bound:
            raise WeightMismatch(
                f"version {version}: the log-probabilities of {name} by {seen:.2g} are not the trainer's, and "
                f"{'float32' if is_float32 else 'bfloat16'} explains {bound:g}: token {gap.token} has "
                f"{gap.by_engine:.4f} in the engine and {gap.by_trainer:.4f} in the trainer. The weights arrived, but "
                "are not what is computed with, or vLLM and transformers compute this model in different ways; in the "
                "first publish it is the second: choose another model, or other versions of the two"
            )
