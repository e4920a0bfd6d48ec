"""Weights that change on their way, or never arrive: noticed by every byte's digest, sent again once, never served."""

import asyncio
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import pytest_asyncio

from ray_rl.errors import WeightMismatch
from ray_rl.rollout.receiver import MISMATCH
from ray_rl.rollout.request import SampleRequest, Sampling
from tests.system.cluster import tampering
from tests.system.cluster.scores import FLOAT32_GAP, batch_of, engine_scores, gap, trainer_scores
from tests.system.cluster.whole_run import started
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]

QUESTION, ANSWER = "What is 3+4? Answer with a number.", "3 + 4 is 7 the sum of 4 and 3"
SAMPLING = Sampling(max_tokens=8, seed=0)
STILL_S = 0.5
"""In which an engine that serves would have answered twice."""
ANSWERED_S = 60.0
LEARNT_GAP = 1e-2
"""By which the answer's log-probabilities change in an update."""


class Publishes:
    """Two ranks of a trainer under ZeRO-3 and two engines, whose weights can be made to go wrong."""

    def __init__(self, run, told, prompt, answer):
        self.actor, self.weights, self.engines = run.workers.actor, run.workers.weights, run.workers.engines
        self.told = told
        """What was said of publishes that failed."""
        self.prompt, self.answer = prompt, answer
        self.version = 0
        self.asked = []
        """Requests of both engines, sent between the arrival of wrong weights and their proof."""
        self.served = []
        """For each of them, what had been answered by the end of its publish."""

    async def install(self):
        await self.actor.team.all(tampering.install)

    async def learn(self):
        """An update, so that the publish to come differs from the one before."""
        before = await trainer_scores(self.actor, self.prompt, self.answer)
        batch = batch_of(self.prompt, [self.answer, self.answer[::-1]])
        advantages_RT = np.where(batch.loss_mask_RT, np.array([[1.0], [-1.0]], np.float32), 0)
        await self.actor.update(replace(batch, advantages_RT=advantages_RT.astype(np.float32)))
        assert gap(await trainer_scores(self.actor, self.prompt, self.answer), before) > LEARNT_GAP

    async def publish(self, harm, *, times):
        """The next version, which goes wrong so many times; requests come in between."""
        self.told.clear()
        self.asked = []
        self.version += 1
        if harm == "one engine only":
            self._leave_out_the_second(times)
        else:
            await self.actor.team.all(tampering.order, harm=harm, publishes=times)
        for engine in self.engines:
            engine.prove = partial(self._prove_late, engine)
        try:
            await self.weights.publish(self.version)
        finally:
            for engine in self.engines:
                del engine.prove

    async def _prove_late(self, engine, digests):
        request = SampleRequest(f"{self.version}/{engine.name}/{len(self.asked)}", tuple(self.prompt), 2, SAMPLING)
        asked = asyncio.ensure_future(engine.generate(request))
        self.asked.append(asked)
        await asyncio.sleep(STILL_S)
        assert not asked.done(), "served before the proof"
        await type(engine).prove(engine, digests)

    def _leave_out_the_second(self, times):
        """Meets in a group of the first engine alone, while the second believes that it has joined and received."""
        left_out, attempts = self.engines[1], 0
        joins = {member: member.join_transfer for member in (self.actor, *self.engines)}
        receive = left_out.receive_weights

        async def actor_joins(rendezvous):
            nonlocal attempts
            attempts += 1
            is_wrong = attempts <= times
            await joins[self.actor](replace(rendezvous, world=2) if is_wrong else rendezvous)

        async def first_joins(init_info):
            await joins[self.engines[0]]({**init_info, "world": 2} if attempts <= times else init_info)

        async def second_joins(init_info):
            if attempts > times:
                await joins[left_out](init_info)

        async def second_receives(update_info):
            if attempts > times:
                await receive(update_info)

        self.actor.join_transfer, self.engines[0].join_transfer = actor_joins, first_joins
        left_out.join_transfer, left_out.receive_weights = second_joins, second_receives
        self.weights._members = []  # so that all meet again, now

    def mend(self):
        """Everybody joins and receives again."""
        for member in (self.actor, *self.engines):
            vars(member).pop("join_transfer", None)
            vars(member).pop("receive_weights", None)

    async def require_right(self):
        """All engines serve what the trainer has; so they have answered every request, under this version alone."""
        expected = await trainer_scores(self.actor, self.prompt, self.answer)
        for engine in self.engines:
            assert gap(await engine_scores(engine, self.prompt, self.answer), expected) < FLOAT32_GAP
        done = await asyncio.wait_for(asyncio.gather(*self.asked), ANSWERED_S)
        assert len(done) >= len(self.engines)
        for completions in done:
            assert {int(version) for each in completions for version in each.versions} == {self.version}
            rows = await self.actor.logprobs(batch_of(self.prompt, [each.token_ids for each in completions]))
            for row, each in zip(rows, completions, strict=True):
                assert gap(row[: len(each.logprobs)], each.logprobs) < FLOAT32_GAP


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["gloo", "shared_memory"])
async def publishes(request, connected, make_config, model):
    from ray_rl.data.chat import ChatTokenizer

    name = f"proof-{request.param}"
    config = make_config(
        run={"name": name, "dir": str(model.parent), "steps": 1},
        model={"path": str(model), "dtype": "float32"},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rollout={"engines": 2, "max_tokens": 8, "max_sequences": 16, "kv_cache_gib": 0.05},
        train={"workers": 2, "zero_stage": 3, "learning_rate": 1e-3},
        weight_sync={"backend": request.param, "bucket_mib": 1, "timeout_s": 60},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )
    tokenizer = ChatTokenizer(model)
    prompt, answer = list(tokenizer.encode(QUESTION, chat=True)), list(tokenizer.encode(ANSWER, chat=False))
    async with started(config, model) as run:
        told = []
        run.workers.weights._tell = told.append
        publishes = Publishes(run, told, prompt, answer)
        await publishes.install()
        await run.workers.weights.publish(0)
        yield publishes


WRONG = pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        ("flip", rf"verifying the weights: rollout-0: {MISMATCH}: 1 of \d+ parameters differ, 0 did not arrive"),
        ("drop", rf"verifying the weights: rollout-0: {MISMATCH}: [1-9]\d* of \d+ parameters differ, 0 did not arrive"),
        (
            "one engine only",
            rf"verifying the weights: rollout-1: {MISMATCH}: (\d+) of \1 parameters differ, \1 did not arrive",
        ),
    ],
    ids=["bit-flipped", "bucket-dropped", "one-of-two-reached"],
)


@WRONG
async def test_what_went_wrong_once_is_sent_again_and_nothing_is_served_meanwhile(publishes, harm, complaint):
    await publishes.learn()
    await publishes.publish(harm, times=1)
    publishes.mend()
    (said,) = publishes.told
    assert re.search(complaint, said)
    assert said.endswith("sending again to rollout-0, rollout-1")
    assert len(publishes.asked) == 4, "both engines proved it twice"
    await publishes.require_right()


@WRONG
async def test_what_goes_wrong_again_is_fatal_and_no_engine_serves(publishes, harm, complaint):
    await publishes.learn()
    with pytest.raises(WeightMismatch, match=complaint):
        await publishes.publish(harm, times=2)
    publishes.mend()
    assert len(publishes.told) == 1
    await asyncio.sleep(STILL_S)
    assert [asked.done() for asked in publishes.asked] == [False] * 4
    # Not until another publish has been proved.
    asked = publishes.asked
    await publishes.publish("flip", times=0)
    publishes.asked += asked
    await publishes.require_right()
