"""Makes the rollouts of a prompt from completions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.request import SampleRequest, Sampling, sampling_seed
from ray_rl.types import Prompt, Rollout, RolloutGroup


class Episodes(Protocol):
    """Samples the rollouts of a prompt, in one turn or in several with an environment between them."""

    async def sample(self, prompt: Prompt, *, samples: int, step: int, index: int) -> RolloutGroup:
        """Returns the rollouts of a prompt, before they are judged. Called for several prompts concurrently.

        Args:
            prompt: the prompt.
            samples: number of rollouts.
            step: the last step in which the rollouts can be trained on. With `index` it determines the seeds.
            index: the index of the prompt in that step.

        Raises:
            RayRLError: an error that ends the run.
        """


@dataclass(frozen=True, slots=True)
class SingleTurn:
    """Makes a rollout of each completion. The completions of a prompt are one request."""

    pool: EnginePool
    sampling: Sampling
    """How completions are sampled. Its seed is that of the run; the seeds of requests derive from it."""

    async def sample(self, prompt: Prompt, *, samples: int, step: int, index: int) -> RolloutGroup:
        """Requests the completions of a prompt from an engine; see `Episodes`."""
        seed = sampling_seed(run_seed=self.sampling.seed, step=step, index=index, prompt_id=prompt.id)
        request = SampleRequest(f"{step}/{index}", prompt.token_ids, samples, replace(self.sampling, seed=seed))
        completions = await self.pool.generate(request)
        return RolloutGroup(prompt, [Rollout.single(each) for each in completions])
