"""Engines, trainer and judge that take virtual time and no work.

The model is Llama-3.3-70B on H100, half of the GPUs sampling (engines of 4), half training:

- An engine decodes `SLOTS` sequences at once, first come first served. Every one of b running sequences gets its next
  token after READ_S + b * SEQUENCE_S: the weights are read once for all, keys and values once for each.
- A publish takes SYNC_S, in which nothing is decoded. An engine then goes on once it has computed the keys and values
  of what it kept anew (`WeightReceiver` clears them): RESUME_S for each sequence.
- Training takes time in proportion to the tokens.
- Prefill of new prompts and rewards take no time. Lengths are lognormal, and those of a group independent.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from ray_rl.metrics.metric import Metric
from ray_rl.rollout.request import SampleRequest
from ray_rl.training.crediting import Credited, credited
from ray_rl.types import Completion, Message, Prompt, RolloutGroup, TrainBatch
from tests.make import completion

GROUP = 8
MAX_TOKENS = 8192
MEDIAN_TOKENS = 1500
SIGMA = 1.0
TENSOR_PARALLEL = 4
SLOTS = 128
"""The planner's KV cache (53 sequences of 8,704 tokens) holds 190 of these on average."""
READ_S = 17.5e-3
"""32.85 GiB of weights a GPU, at 60% of 3.35 TB/s."""
SEQUENCE_S = 0.1e-3
"""80 KiB a GPU and token, of 2,400 tokens so far, at the same rate."""
SYNC_S = 7.0
RESUME_S = 0.19
"""2,400 tokens at 2 * 70.6e9 operations each, at 45% of the peak of 4 GPUs."""
PLANNED = 2.1
"""Training over sampling, by the planner: 8 * 70.6e9 operations a token and its share of a prompt of 512, at 35% of the
peak, against the full engines above."""
COARSE = 64
"""Tokens that one element of the arrays stands for. The driver's own time is another measurement."""


@dataclass(frozen=True)
class Load:
    """What the simulated machines have to do."""

    gpus: int
    prompts: int
    """Of a step."""
    ratio: float = 1.0
    """Expected seconds of training and publishing, over those of sampling with full engines."""

    @property
    def engines(self) -> int:
        return self.gpus // 2 // TENSOR_PARALLEL

    def sampling_s(self, tokens: float) -> float:
        """With every slot of every engine taken all the time."""
        return tokens * token_s(SLOTS) / SLOTS / self.engines

    @property
    def training_s(self) -> float:
        """Of a token, such that `ratio` holds."""
        tokens = self.prompts * GROUP * float(lengths(0, 100_000).mean())
        return (self.ratio * self.sampling_s(tokens) - SYNC_S) / tokens


def token_s(running: int) -> float:
    """Until each of the running sequences has its next token."""
    return READ_S + SEQUENCE_S * running


def lengths(seed: int, samples: int) -> np.ndarray:
    """The same for the same request, whatever the schedule."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN_TOKENS), SIGMA, samples)
    return np.clip(drawn, 1, MAX_TOKENS)


@dataclass(frozen=True, slots=True, order=True)
class _Sequence:
    end: float
    """Tokens that the engine gives to each running sequence until this one is complete."""
    number: int
    length: float
    version: int
    done: asyncio.Future[Completion]


class Engine:
    """Shares its decoding rate equally among what runs; one timer, for the sequence that ends next."""

    def __init__(self) -> None:
        self.version = 0
        self._waiting: deque[tuple[float, asyncio.Future[Completion]]] = deque()
        self._running: list[_Sequence] = []
        self._given = 0.0
        """Tokens, to a sequence that runs since the start."""
        self._at_s = 0.0
        self._is_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = count()

    async def generate(self, request: SampleRequest) -> list[Completion]:
        loop = asyncio.get_running_loop()
        asked = [(float(length), loop.create_future()) for length in lengths(request.sampling.seed, request.samples)]
        self._waiting.extend(asked)
        self._turn()
        return list(await asyncio.gather(*(done for _, done in asked)))

    def pause(self) -> None:
        self._turn()
        self._is_paused = True

    def serve(self, version: int) -> None:
        """Goes on with new weights, as soon as the caches are there."""
        self.version = version
        asyncio.get_running_loop().call_later(RESUME_S * len(self._running), self._resume)

    def _resume(self) -> None:
        self._turn()
        self._is_paused = False
        self._turn()

    def _turn(self) -> None:
        """Gives what the time since the last turn was worth, and fills the slots that it freed."""
        loop = asyncio.get_running_loop()
        passed_s, self._at_s = loop.time() - self._at_s, loop.time()
        if self._is_paused:
            return
        self._given += passed_s / token_s(len(self._running))
        while self._running and self._running[0].end <= self._given + 1e-6:
            ended = heapq.heappop(self._running)
            if not ended.done.done():
                ended.done.set_result(self._completion(ended))
        while self._waiting and len(self._running) < SLOTS:
            length, done = self._waiting.popleft()
            started = _Sequence(self._given + length, next(self._numbers), length, self.version, done)
            heapq.heappush(self._running, started)
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            left_s = (self._running[0].end - self._given) * token_s(len(self._running))
            self._timer = loop.call_later(left_s, self._turn)

    def _completion(self, ended: _Sequence) -> Completion:
        size = max(1, round(ended.length / COARSE))
        versions = np.full(size, self.version, np.int32)
        versions[0] = ended.version
        return completion(size, versions=versions)


class Machines:
    """The engines, and the roles of actor and weights over them."""

    def __init__(self, load: Load) -> None:
        self.engines = [Engine() for _ in range(load.engines)]
        self.tokens: list[int] = []
        """Trained on, at each step."""
        self.ends_s: list[float] = []
        """When each step's weights were published."""
        self._training_s = load.training_s

    async def credit(self, *batch: Any, **settings: Any) -> Credited:
        return credited(self, *batch, **settings)

    async def update(self, batch: TrainBatch) -> list[Metric]:
        self.tokens.append(int(batch.lengths_R.sum()) * COARSE)
        await asyncio.sleep(self.tokens[-1] * self._training_s)
        return []

    async def publish(self, version: int) -> list[Metric]:
        if version == 0:
            return []
        for engine in self.engines:
            engine.pause()
        await asyncio.sleep(SYNC_S)
        for engine in self.engines:
            engine.serve(version)
        self.ends_s.append(asyncio.get_running_loop().time())
        return []


class Judge:
    """Half of every group is right."""

    async def score(self, group: RolloutGroup) -> tuple[RolloutGroup, list[Metric]]:
        pairs = ((each, float(g % 2)) for g, each in enumerate(group.rollouts))
        scored = [replace(each, reward=reward, reward_parts={"half": reward}) for each, reward in pairs]
        return replace(group, rollouts=scored), []

    def metrics(self) -> list[Metric]:
        return []


class Source:
    """The same prompt for ever."""

    def take(self, count: int) -> list[Prompt]:
        return [Prompt("p", (1,) * 512, "?", {}, (Message("user", "?"),))] * count

    def metrics(self) -> list[Metric]:
        return []

    def state(self) -> None:
        return None
