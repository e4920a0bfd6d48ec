"""Weights that change in an engine after they were proved: what only the audit can see.

Real engines; one of them is sent a changed parameter behind the trainer's back, under the version that it has.
"""

import asyncio

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from ray_rl.app.build import sampling_of
from ray_rl.errors import WeightMismatch
from ray_rl.weight_sync.audit import AuditedWeights, AuditSettings
from ray_rl.weight_sync.gloo_group import GlooGroup
from ray_rl.weight_sync.messages import Rendezvous
from ray_rl.weight_sync.transports import engine_init_info
from tests.system.cluster.scores import FLOAT32_GAP, engine_scores, gap, trainer_scores
from tests.system.cluster.whole_run import started
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]

LIMIT_S = 60.0
MIB = 2**20
QUESTION, ANSWER = "What is 3+4? Answer with a number.", "3 + 4 is 7 the sum of 4 and 3"


class Damaging:
    """Publishes; then, so many times, gives one engine another parameter than it has proved."""

    def __init__(self, workers, name, changed):
        self._weights, self._actor, self._engine = workers.weights, workers.actor, workers.engines[1]
        self._name, self._changed = name, changed
        self.times = 0
        self.publishes = 0

    async def publish(self, version):
        metrics = await self._weights.publish(version)
        self.publishes += 1
        if self.publishes <= self.times:
            await self._damage(version)
        return metrics

    async def _damage(self, version):
        address, port = await self._actor.meeting_place()
        meeting = Rendezvous(address, port, world=2, capacity_bytes=MIB, timeout_s=LIMIT_S, segment="")
        joining = asyncio.ensure_future(self._engine.join_transfer(engine_init_info("gloo", meeting, rank_offset=1)))
        group = await asyncio.to_thread(GlooGroup, address=address, port=port, rank=0, world=2, timeout_s=LIMIT_S)
        await joining
        await self._engine.begin_update()
        announced = {"names": [self._name], "dtype_names": ["float32"], "shapes": [list(self._changed.shape)]}
        announced["parts"] = [self._changed.numel()]
        receiving = asyncio.ensure_future(self._engine.receive_weights(announced))
        await asyncio.to_thread(group.broadcast(self._changed.view(-1).view(torch.uint8)).wait)
        await receiving
        await self._engine.commit(version)
        await self._engine.resume()
        self._weights._members = []  # this engine has left the trainer's group


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def run(connected, make_config, model):
    config = make_config(
        run={"name": "audit", "dir": str(model.parent), "steps": 1},
        model={"path": str(model), "dtype": "float32"},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rollout={"engines": 2, "max_tokens": 8, "max_sequences": 16, "kv_cache_gib": 0.05},
        weight_sync={"backend": "gloo", "bucket_mib": 1, "timeout_s": 60, "audit_every": 1},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )
    async with started(config, model) as started_run:
        yield started_run


DAMAGE = pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("model.norm.weight", "rollout-1 and rollout-0 have loaded different weights from one publish: 1 of"),
        ("model.layers.1.self_attn.o_proj.weight", r"the log-probabilities of rollout-1 by \S+ are not the trainer's"),
    ],
    ids=["seen-by-checksums", "packed-and-seen-by-the-canary"],
)


def audited(run, model, name):
    from ray_rl.data.chat import ChatTokenizer

    workers = run.workers
    changed = load_file(model / "model.safetensors")[name] * 1.5
    damaging = Damaging(workers, name, changed)
    prompt = ChatTokenizer(model).encode(QUESTION, chat=True)
    audited = AuditedWeights(
        AuditSettings(every=1, is_synchronous=True, is_float32=True, rows=run.config.train.workers),
        damaging,
        actor=workers.actor,
        phases=workers.turns,
        engines=lambda: workers.engines,
        prompt=tuple(prompt),
        sampling=sampling_of(run.config, ChatTokenizer(model).ends_of(run.config.rollout, run.config.data)),
    )
    return damaging, audited


async def require_right(run, model):
    """Both engines serve what the trainer has."""
    from ray_rl.data.chat import ChatTokenizer

    tokenizer = ChatTokenizer(model)
    prompt, answer = list(tokenizer.encode(QUESTION, chat=True)), list(tokenizer.encode(ANSWER, chat=False))
    expected = await trainer_scores(run.workers.actor, prompt, answer)
    for engine in run.workers.engines:
        assert gap(await engine_scores(engine, prompt, answer), expected) < FLOAT32_GAP


@DAMAGE
async def test_an_engine_damaged_once_gets_everything_again(run, model, name, complaint):
    damaging, weights = audited(run, model, name)
    damaging.times = 1
    metrics = {metric.name: metric.value for metric in await weights.publish(1)}
    assert damaging.publishes == 2
    assert 0 < metrics["sync/checksums_proved"] < 1, "vLLM packs some of the weights on CPU"
    assert metrics["sync/canary_gap_max"] < FLOAT32_GAP
    await require_right(run, model)


@DAMAGE
async def test_an_engine_damaged_again_ends_the_run(run, model, name, complaint):
    damaging, weights = audited(run, model, name)
    damaging.times = 2
    with pytest.raises(WeightMismatch, match=complaint):
        await weights.publish(2)
    assert damaging.publishes == 2
    damaging.times = 0
    await weights.publish(3)
    await require_right(run, model)
