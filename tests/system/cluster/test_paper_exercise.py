"""A judge, an environment and a role that the package does not know, added here without a change to the package.

What each of them takes:
    judge         `Constant`, 7 lines, and a `Part` of the rewards that says its name and weight
    environment   `TwoTurns`, 25 lines; schedule, rewards, checkpoints and publish are those of every run
    role          `second_reference`, 10 lines for its workers, and `Compared`, 15 lines for what the driver asks it

An objective is in test_new_objective.py. All three work in one run: the driver takes two steps with a real trainer, a
real reference and a real engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from numpy.typing import NDArray

from ray_rl.algorithms.kl import kl_estimate
from ray_rl.concurrency import together
from ray_rl.config import RunConfig
from ray_rl.config.train import ReferenceConfig
from ray_rl.loops.roles import Actor, Scorer
from ray_rl.metrics.metric import Mean, Metric, Total
from ray_rl.rewards.judge import Judgement
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.request import SampleRequest, Sampling, sampling_seed
from ray_rl.types import Completion, Message, Prompt, Rollout, RolloutGroup, TrainBatch, Turn
from tests.system.cluster.scores import FLOAT32_GAP, engine_scores, gap, trainer_scores
from tests.system.cluster.whole_run import Started, started
from tests.tiny_model import write_tiny_model
from tests.unit.models.tiny import one_by_one

if TYPE_CHECKING:
    from ray_rl.cluster.start import TeamSpec

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS, PROMPTS, GROUP = 2, 2, 4
OPINION, WEIGHT = 0.5, 3.0
REPLY = "What is the sum ?"
NAME = "second_reference"


@dataclass(frozen=True)
class Constant:
    """A judge with one opinion."""

    score: float

    async def judge(self, group: RolloutGroup) -> list[Judgement]:
        first, *others = [Judgement(self.score)] * len(group.rollouts)
        return [replace(first, metrics=(Total("constant/judged", len(group.rollouts)),)), *others]


@dataclass(frozen=True)
class TwoTurns:
    """An environment that asks back once, and rewards every second rollout of a group for its second answer."""

    pool: EnginePool
    sampling: Sampling
    reply: tuple[int, ...]

    async def sample(self, prompt: Prompt, *, samples: int, step: int, index: int) -> RolloutGroup:
        name, seed_of = f"{step}/{index}", partial(sampling_seed, step=step, index=index, prompt_id=prompt.id)

        async def ask(tokens: tuple[int, ...], count: int, **place: int) -> list[Completion]:
            sampling = replace(self.sampling, seed=seed_of(run_seed=self.sampling.seed, **place))
            request = SampleRequest(f"{name}/{place}", tokens, count, sampling)
            return await self.pool.generate(request, sticky=name)

        async def episode(number: int, first: Completion) -> Rollout:
            tokens = (*prompt.token_ids, *first.token_ids.tolist(), *self.reply)
            (second,) = await ask(tokens, 1, sample=number, turn=1)
            turn = Turn(self.reply, second, reward=float(number % 2), messages=(Message("user", REPLY),))
            return Rollout((Turn((), first), turn), None, {}, "turns")

        answers = await ask(prompt.token_ids, samples)
        return RolloutGroup(prompt, await together(episode(*each) for each in enumerate(answers)))


def second_reference(config: RunConfig, folder: Path) -> TeamSpec:
    """A role of one worker with a frozen model, which is restarted when it is lost."""
    from ray_rl.app.models import policy_network
    from ray_rl.cluster.start import TeamSpec
    from ray_rl.training.frozen import FrozenModel, FrozenSettings

    settings = FrozenSettings(role=ReferenceConfig(), layout=config.train, dtype=config.model.dtype, accelerator="cpu")
    network = policy_network(config, str(folder), key="the second reference")
    build = partial(FrozenModel, network, settings)
    return TeamSpec(role=NAME, build=build, timeout_s=60.0, threads=1, has_state=False)


@dataclass
class Compared:
    """The actor, which says before each update how far its policy is from another model; the rest it does itself."""

    actor: Actor
    other: Scorer
    seen: list[tuple[TrainBatch, NDArray[np.float32]]] = field(default_factory=list)
    """The batches, and what the policy said of them before it was trained on them."""

    async def update(self, batch: TrainBatch) -> list[Metric]:
        policy_RT, other_RT = await together(model.logprobs(batch) for model in (self.actor, self.other))
        self.seen.append((batch, policy_RT))
        policy_N, other_N = (torch.from_numpy(each[batch.loss_mask_RT]) for each in (policy_RT, other_RT))
        kl_N = kl_estimate(policy_N, other_N, "k3")
        return [Mean("policy/kl_to_second_reference", float(kl_N.sum()), len(kl_N)), *await self.actor.update(batch)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actor, name)


@dataclass(frozen=True)
class Exercise:
    """The run after its last step, with its workers still there."""

    run: Started
    reply: tuple[int, ...]
    second: Path
    """The folder of the second reference."""
    compared: Compared


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def exercise(
    connected: RunConfig, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Exercise]:
    from ray_rl.app.build import build_collector
    from ray_rl.cluster.roles import RayReference
    from ray_rl.data.chat import ChatTokenizer
    from ray_rl.rewards.combine import Part, Rewards
    from ray_rl.rewards.functions.calls import PartCalls
    from ray_rl.rewards.functions.parts import build_part

    first, second = (write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=seed) for seed in (0, 1))
    config = make_config(
        "paper-exercise",
        run={"name": "paper-exercise", "dir": str(first.parent), "steps": STEPS},
        model={"path": str(first), "dtype": "float32"},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rewards=[{"kind": "number", "require_stop": False}],
        algorithm={"prompts_per_step": PROMPTS, "group_size": GROUP, "kl": {"coefficient": 0.01}},
        reference={},
        rollout={"max_tokens": 6, "max_sequences": 8, "kv_cache_gib": 0.05},
        train={"learning_rate": 1e-3},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )
    reply = ChatTokenizer(first).encode(REPLY, chat=False)
    (usual,) = config.rewards
    rewards = Rewards(
        [Part(usual.label, usual.weight, PartCalls(build_part(usual))), Part("constant", WEIGHT, Constant(OPINION))]
    )
    async with started(config, first, beside=[second_reference(config, second)]) as run:
        episodes = TwoTurns(run.pool, run.sampling, reply)
        rollouts = build_collector(config, run.source, run.pool, episodes, rewards)
        compared = Compared(run.roles.actor, RayReference(run.workers.teams[NAME]))
        await run.train(replace(run.roles, rollouts=rollouts, actor=compared))
        yield Exercise(run, reply, second, compared)


async def test_a_judge_is_a_part_of_every_reward_and_of_the_metrics(exercise):
    samples, lines = exercise.run.samples(), exercise.run.records()
    assert len(samples) == STEPS * PROMPTS * GROUP
    for place, sample in enumerate(samples):
        assert sample["reward_parts"].keys() == {"number", "constant"}
        assert sample["reward_parts"]["constant"] == OPINION
        assert sample["reward"] == sample["reward_parts"]["number"] + WEIGHT * OPINION + place % 2
    for line in lines:
        assert line["reward/constant_mean"] == OPINION
        assert line["reward/mean"] == pytest.approx(line["reward/number_mean"] + WEIGHT * OPINION + 0.5)
        assert line["constant/judged"] == PROMPTS * GROUP


async def test_episodes_of_two_turns_are_sampled_by_the_newest_version_and_recorded_whole(exercise):
    for sample in exercise.run.samples():
        version = sample["step"] - 1
        (first, start), reply, (second, end) = sample["versions"]
        assert (first, reply, second) == (version, [-1, len(exercise.reply)], version)
        assert sample["token_ids"][start:-end] == list(exercise.reply)
        assert f"\n{REPLY}\n" in sample["completion"]
        assert (sample["length"], sample["finish_reason"]) == (start + end, "turns")


async def test_only_what_the_policy_sampled_is_trained_on_and_turns_have_rewards_of_their_own(exercise):
    for batch, policy_RT in exercise.compared.seen:
        mask_RT, ends_R = batch.loss_mask_RT, batch.lengths_R - 1
        assert mask_RT.sum(1).tolist() == batch.sampled_R.tolist() == (batch.lengths_R - len(exercise.reply)).tolist()
        assert gap(policy_RT[mask_RT], batch.rollout_logprobs_RT[mask_RT]) < FLOAT32_GAP
        turns_R = np.arange(batch.rows) % 2
        assert (batch.token_rewards_RT[np.arange(batch.rows), ends_R] == turns_R).all()
        assert batch.token_rewards_RT.sum() == turns_R.sum()
        totals_PG = (batch.rewards_R + turns_R).reshape(PROMPTS, GROUP)
        above_R = (totals_PG - totals_PG.mean(1, keepdims=True)).ravel()
        assert (batch.advantages_RT[~mask_RT] == 0).all()
        assert (np.sign(batch.advantages_RT[:, 0]) == np.sign(above_R)).all()


async def test_the_update_makes_rewarded_episodes_likelier_and_the_engine_serves_it(exercise):
    batch, before_RT = exercise.compared.seen[-1]
    actor, (engine,) = exercise.run.roles.actor, exercise.run.workers.engines
    gained_RT = await actor.logprobs(batch) - before_RT
    assert float((gained_RT * batch.advantages_RT).sum()) > 0
    prompt, answer = batch.prompt_ids[0].tolist(), batch.tokens_RT[0, : batch.lengths_R[0]].tolist()
    served = await engine_scores(engine, prompt, answer)
    assert gap(served, await trainer_scores(actor, prompt, answer)) < FLOAT32_GAP
    assert [line["version"] for line in exercise.run.records()] == [1, 2]


async def test_a_second_reference_scores_every_batch_with_its_own_frozen_weights(exercise):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(exercise.second, dtype=torch.float32)
    lines = exercise.run.records()
    for line, (batch, policy_RT) in zip(lines, exercise.compared.seen, strict=True):
        mask_RT = batch.loss_mask_RT
        with torch.no_grad():
            other_RT = one_by_one(model, batch).numpy()
        ratio_N = (other_RT - policy_RT)[mask_RT].astype(np.float64)
        assert line["policy/kl_to_second_reference"] == pytest.approx(
            float(np.mean(np.expm1(ratio_N) - ratio_N)), rel=1e-3
        )
    assert lines[0]["policy/kl_to_second_reference"] > 0.1
