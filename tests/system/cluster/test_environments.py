"""Episodes over a real engine, a real trainer and environments in real workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from ray_rl.config import RunConfig
from ray_rl.environments.host import Answer
from ray_rl.errors import EnvironmentFailed
from ray_rl.loops.roles import Actor
from ray_rl.metrics.metric import Metric
from ray_rl.rollout.multi_turn import Failures, Limits, MultiTurn
from ray_rl.types import Completion, Message, Prompt, TrainBatch
from tests.make import completion
from tests.system.cluster.scores import FLOAT32_GAP, gap, trainer_scores
from tests.system.cluster.whole_run import Started, started
from tests.tiny_model import WORDS, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS, PROMPTS, GROUP, TURNS = 2, 2, 4, 3
LIMIT_S = 2.0
END = WORDS.index("<|end|>")


@dataclass
class Watched:
    """The actor, which says of each batch what its weights say of it before the update."""

    actor: Actor
    seen: list[tuple[TrainBatch, NDArray[np.float32]]] = field(default_factory=list)

    async def update(self, batch: TrainBatch) -> list[Metric]:
        self.seen.append((batch, await self.actor.logprobs(batch)))
        return await self.actor.update(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actor, name)


@dataclass(frozen=True)
class Finished:
    run: Started
    watched: Watched


def config_of(
    make_config: Callable[..., RunConfig], connected: RunConfig, model: Path, **environment: Any
) -> RunConfig:
    given = {"kind": "custom", "function": "tests.worlds:Sums", "max_turns": 5, "max_tokens": 90}
    return make_config(
        "episodes",
        run={"name": f"episodes-{model.name}", "dir": str(model.parent), "steps": STEPS},
        model={"path": str(model), "dtype": "float32"},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rewards=[],
        environment=given | environment,
        algorithm={"prompts_per_step": PROMPTS, "group_size": GROUP},
        rollout={"max_tokens": 6, "max_sequences": 8, "kv_cache_gib": 0.05, "max_staleness": 1},
        train={"learning_rate": 1e-3},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def finished(
    connected: RunConfig, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Finished]:
    from ray_rl.app.build import build_collector
    from ray_rl.app.environments import build_host, episodes_of
    from ray_rl.cluster.environments import EnvironmentWorkers
    from ray_rl.rewards.combine import Rewards

    model = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    config = config_of(make_config, connected, model)
    async with started(config, model) as run:
        logs, build = run.folder.logs.absolute(), partial(build_host, config, str(model))
        environments = EnvironmentWorkers(build, workers=2, timeout_s=LIMIT_S, logs=logs, tell=run.run.tell)
        await environments.start()
        episodes = episodes_of(config, environments, pool=run.pool, sampling=run.sampling, tell=run.run.tell)
        watched = Watched(run.roles.actor)
        rollouts = build_collector(config, run.source, run.pool, episodes, Rewards([]))
        await run.train(replace(run.roles, rollouts=rollouts, actor=watched))
        await environments.stop()
        yield Finished(run, watched)


async def test_every_sampled_token_of_every_turn_has_the_log_probability_of_the_trainer(finished):
    """The first batch was sampled by the weights that it is compared with."""
    batch, policy_RT = finished.watched.seen[0]
    mask_RT = batch.loss_mask_RT
    assert gap(policy_RT[mask_RT], batch.rollout_logprobs_RT[mask_RT]) < FLOAT32_GAP
    assert (batch.rollout_logprobs_RT[~mask_RT] == 0).all()
    assert mask_RT.sum(1).tolist() == batch.sampled_R.tolist()
    assert (batch.sampled_R < batch.lengths_R).all()


async def test_an_episode_is_its_samples_and_the_tokens_of_the_template_between_them(finished):
    """The template: `<|role|> content <|end|> `, then `<|assistant|>`; a turn that is cut off is closed."""
    for sample in finished.run.samples():
        tokens, at = sample["token_ids"], 0
        assert len(sample["turns"]) == TURNS
        for turn, (version, length) in zip(sample["turns"], sample["versions"][::2], strict=True):
            if at:
                (message,) = turn["messages"]
                asked = [WORDS.index(word) for word in message["content"].split()]
                cut = [] if tokens[at - 1] == END else [END]
                written = [*cut, WORDS.index("<|user|>"), *asked, END, WORDS.index("<|assistant|>")]
                assert tokens[at : at + len(written)] == written
                at += len(written)
            assert 0 < length <= 6
            assert version >= 0
            at += length
        assert at == len(tokens)


async def test_turns_are_rewarded_each_and_metrics_say_so(finished):
    for sample in finished.run.samples():
        for turn in sample["turns"]:
            assert turn["reward"] == turn["metrics"]["digits"] == float(any(map(str.isdigit, turn["completion"])))
        assert sample["reward"] == sum(turn["reward"] for turn in sample["turns"])
    for line in finished.run.records():
        assert line["environment/turns_mean"] == TURNS
        assert line["reward/mean"] == pytest.approx(line["environment/reward_mean"])
        assert line["environment/reward_mean"] == pytest.approx(TURNS * line["environment/digits_mean"])


async def test_the_groups_of_a_prompt_begin_with_one_question(finished):
    samples = finished.run.samples()
    for first in range(0, len(samples), GROUP):
        assert len({sample["prompt"] for sample in samples[first : first + GROUP]}) == 1


async def test_a_publish_between_turns_is_seen_in_versions_and_log_probabilities(finished):
    """Each turn has the log-probabilities of the weights that sampled it, over all tokens before it."""
    run, actor = finished.run, finished.watched.actor
    batch, _ = finished.watched.seen[-1]
    asked = prompt()
    scored: list[NDArray[np.float32]] = []

    class Between:
        """Trains the policy and publishes it while the environment is asked for the second turn."""

        async def begin(self, episode: str, prompt: Prompt, *, seed: int) -> Prompt:
            return prompt

        async def step(self, episode: str, completion: Completion, *, room: int) -> Answer:
            if scored:
                return Answer(done=True)
            scored.append(await trainer_scores(actor, asked.token_ids, completion.token_ids))
            await actor.update(batch)
            await run.roles.weights.publish(STEPS + 1)
            return Answer((END, WORDS.index("<|user|>"), WORDS.index("sum"), WORDS.index("<|assistant|>")))

        def end(self, episode: str) -> None:
            pass

    limits = Limits(prompt_tokens=32, tokens=64, turns=4, tool_calls=None, seconds=600.0)
    multi = MultiTurn(run.pool, run.sampling, Between(), limits, Failures(print))
    (rollout,) = (await multi.sample(asked, samples=1, step=9, index=0)).rollouts
    first, second = (turn.completion for turn in rollout.turns)
    assert set(first.versions) == {STEPS}
    assert set(second.versions) == {STEPS + 1}
    newer = await trainer_scores(actor, asked.token_ids, rollout.token_ids)
    assert gap(first.logprobs, scored[0]) < FLOAT32_GAP
    assert gap(second.logprobs, newer[-len(second.token_ids) :]) < FLOAT32_GAP
    assert gap(first.logprobs, newer[: len(first.token_ids)]) > 10 * FLOAT32_GAP


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hosting(
    connected: RunConfig, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Callable[..., Any]]:
    """Makes workers of environments, which end with the module."""
    from ray_rl.app.environments import build_host
    from ray_rl.cluster.environments import EnvironmentWorkers

    model, made = write_tiny_model(tmp_path_factory.mktemp("hosted")), []

    async def host(function: str, *, told: list[str], **options: Any) -> EnvironmentWorkers:
        part = {"function": f"tests.worlds:{function}", "options": options, "turn_timeout_s": LIMIT_S}
        config = config_of(make_config, connected, model, **part)
        build, logs = partial(build_host, config, str(model)), model.parent / "logs"
        made.append(EnvironmentWorkers(build, workers=1, timeout_s=LIMIT_S, logs=logs, tell=told.append))
        await made[-1].start()
        return made[-1]

    yield host
    for each in made:
        await each.stop()


def prompt(does: str | None = None) -> Prompt:
    question = Message("user", "What is 1 + 1 ?")
    return Prompt("p/0", (2, 1), question.content, {"does": does}, messages=(question,))


ANSWER = completion([5, END], "1")


async def play(workers: Any, name: str, does: str | None = None) -> Any:
    await workers.begin(name, prompt(does), seed=0)
    await workers.step(name, ANSWER, room=64)
    return await workers.step(name, ANSWER, room=64)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("raise", "step raised KeyError: 'no such square' at .*worlds.py"),
        ("exit", "step raised SystemExit: 3"),
        ("hang", "step did not return within 2 s"),
        ("nonsense", "NoneType None, not a"),
    ],
)
async def test_a_hostile_environment_fails_alone(hosting, does, why):
    told: list[str] = []
    workers = await hosting("Hostile", told=told)
    await workers.begin("good", prompt(), seed=0)
    with pytest.raises(EnvironmentFailed, match=why):
        await play(workers, "bad", does)
    workers.end("bad")
    assert (await workers.step("good", ANSWER, room=64)).reward == 1.0
    assert told == []


async def test_answers_that_do_not_fit_or_pose_as_the_template_stay_text(hosting):
    workers = await hosting("Hostile", told=[])
    flood = await play(workers, "flood", "flood")
    assert (flood.is_too_long, flood.token_ids) == (True, ())
    control = await play(workers, "control", "control")
    assert control.token_ids.count(END) == control.token_ids.count(WORDS.index("<|assistant|>")) == 1


async def test_an_environment_that_ends_its_worker_is_an_outcome_and_the_worker_is_replaced(hosting):
    told: list[str] = []
    workers = await hosting("Hostile", told=told)
    await workers.begin("beside", prompt(), seed=0)
    with pytest.raises(EnvironmentFailed, match="the worker of the environment was lost"):
        await play(workers, "bad", "die")
    assert len(told) == 1
    assert "with 2 episodes is replaced" in told[0]
    with pytest.raises(EnvironmentFailed, match="was replaced"):
        await workers.step("beside", ANSWER, room=64)
    assert (await play(workers, "next")).reward == 1.0


async def test_an_event_loop_that_hangs_is_an_outcome_and_its_worker_is_replaced(hosting, monkeypatch):
    monkeypatch.setattr("ray_rl.cluster.environments.GRACE_S", 1.0)
    told: list[str] = []
    workers = await hosting("Blocking", told=told)
    with pytest.raises(EnvironmentFailed, match="does not answer for 3 s"):
        await play(workers, "bad", "hang")
    assert len(told) == 1


async def test_a_worker_with_calls_that_never_end_keeps_its_episodes_and_gets_no_more(hosting, monkeypatch):
    monkeypatch.setattr("ray_rl.cluster.environments.MOST_STUCK", 1)
    told: list[str] = []
    workers = await hosting("Hostile", told=told)
    await workers.begin("good", prompt(), seed=0)
    with pytest.raises(EnvironmentFailed, match="did not return within 2 s"):
        await play(workers, "bad", "hang")
    assert told == ["environment-0 with 2 episodes is replaced: 1 calls of its environments do not end"]
    workers.end("bad")
    assert (await workers.step("good", ANSWER, room=64)).reward == 1.0
    assert (await play(workers, "next")).reward == 1.0


async def test_processes_that_an_environment_leaves_end_with_its_worker(hosting):
    workers = await hosting("Hostile", told=[])
    await play(workers, "leak", "leak")
    for _ in range(50):
        if leaked():
            break
        await asyncio.sleep(0.1)
    assert leaked()
    await workers.stop()
    await asyncio.to_thread(psutil.wait_procs, leaked(), timeout=10)
    assert not leaked()


def leaked() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "3600.125"]]
