"""Prompts -> completions -> rewards, for one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ray_rl.config import RunConfig
from ray_rl.data.source import PromptSource
from ray_rl.metrics.metric import Mean, Metric
from ray_rl.metrics.rollout_metrics import is_informative
from ray_rl.rewards.combine import Rewards
from ray_rl.rollout.request import SampleRequest, request_seed
from ray_rl.rollout.router import Router
from ray_rl.rollout.together import together
from ray_rl.types import Completion, Prompt, RolloutGroup


class Sampler(Protocol):
    """An engine, as the collector sees it."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """G completions of a prompt."""


class Collector:
    """Spreads prompts over the engines and scores each group as soon as it is complete."""

    def __init__(self, config: RunConfig, source: PromptSource, samplers: Sequence[Sampler], rewards: Rewards) -> None:
        """Asks nothing yet.

        Args:
            config: sampling settings, group size and seed.
            source: of the prompts.
            samplers: the engines.
            rewards: the judges; closed by whoever made them.
        """
        self._config = config
        self._source = source
        self._samplers = samplers
        self._rewards = rewards
        self._router = Router(len(samplers))

    async def take(
        self, count: int, *, step: int, progress: Callable[[str], None]
    ) -> tuple[list[RolloutGroup], list[Metric]]:
        """`count` groups of the next prompts, in the order of the prompts.

        With `algorithm.dynamic_sampling`, groups of equal rewards give way to those of further prompts, until there
        are enough or the bound is reached; then the first of them fill the batch.

        Raises:
            RayRLError: an engine or a reward failed; the requests under way are dropped.
        """
        sampling = self._config.algorithm.dynamic_sampling
        if sampling is None:
            return await self._draw(count, first=0, step=step, progress=progress)
        drawn: list[RolloutGroup] = []
        metrics: list[Metric] = []
        informative: list[int] = []
        while len(informative) < count and len(drawn) < sampling.max_draws * count:
            # What earlier rounds lacked, and never more than the bound.
            wanted = min(count - len(informative), sampling.max_draws * count - len(drawn))
            groups, found = await self._draw(wanted, first=len(drawn), step=step, progress=progress)
            informative += [len(drawn) + i for i, group in enumerate(groups) if is_informative(group)]
            drawn += groups
            metrics += found
        rest = [i for i in range(len(drawn)) if i not in set(informative)]
        kept = sorted(informative + rest[: count - len(informative)])
        metrics.append(Mean("rollout/groups_dropped_fraction", len(drawn) - count, len(drawn)))
        return [drawn[i] for i in kept], metrics

    async def _draw(
        self, count: int, *, first: int, step: int, progress: Callable[[str], None]
    ) -> tuple[list[RolloutGroup], list[Metric]]:
        """The groups of the next `count` prompts; `first` prompts were drawn for this step before."""
        samples = self._config.algorithm.group_size
        finished = 0

        async def group(index: int, prompt: Prompt) -> tuple[RolloutGroup, list[Metric]]:
            nonlocal finished
            seed = request_seed(run_seed=self._config.run.seed, step=step, index=index, prompt_id=prompt.id)
            request = SampleRequest(f"{step}/{index}", prompt.token_ids, samples, seed)
            tokens = samples * self._config.rollout.max_tokens + len(prompt.token_ids)
            with self._router.place(tokens) as engine:
                completions = await self._samplers[engine].generate(request)
            scored = await self._rewards.ascore(prompt, completions)
            finished += samples
            progress(f"{finished} of {count * samples} completions")
            return scored

        progress(f"0 of {count * samples} completions")
        results = await together(group(i, prompt) for i, prompt in enumerate(self._source.take(count), first))
        metrics = [metric for _, parts in results for metric in parts] + self._source.metrics()
        return [scored for scored, _ in results], metrics
