"""Adapters that are published by themselves, in vLLM's own LoRA: one real engine in float32.

The adapters are random, and so large that log-probabilities change by far more than rounding. The sender, the receiver
and vLLM are the real ones; what the trainer has is a model of transformers with the adapter merged into it.
"""

import asyncio
import socket
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from ray_rl.app.engines import policy_engine
from ray_rl.errors import EngineError, WeightMismatch, WeightSyncError
from ray_rl.metrics.metric import Total
from ray_rl.rollout.engine import Engine
from ray_rl.rollout.receiver import NOT_SERVED, PAUSES
from ray_rl.rollout.request import SampleRequest, Sampling
from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync.messages import Rendezvous
from ray_rl.weight_sync.publish import publish
from ray_rl.weight_sync.senders.sender import GlooSender
from ray_rl.weight_sync.transports import engine_init_info
from tests.system.cluster.scores import FLOAT32_GAP, gap
from tests.tiny_model import write_tiny_model

# vLLM leaves its context of ZeroMQ to the collector; in an actor the process ends with it.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RANK, ALPHA = 4, 8.0
SCALE = ALPHA / RANK
LIMIT_S = 60.0
MIB = 2**20
SIZE = 0.1
"""Standard deviation of the matrices."""
CHANGED = 1e-2
"""Less than any two versions differ by."""
PROMPT, ANSWER = [2, 17, 18, 7, 14, 8, 15, 1, 3], [7, 14, 8, 18, 11, 23, 24, 25, 8, 26, 7]
PEFT = "base_model.model."


class Trainer:
    """A model whose adapter is random and changes with each version, and the stream of both."""

    device = torch.device("cpu")

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        self.base = load_file(folder / "model.safetensors")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._layers = [name for name, w in self.base.items() if w.ndim == 2 and ".layers." in name]
        self.learn(0)
        names = [*self.base, *self.adapter]
        self.specs = [ParameterSpec(name, "float32", tuple(self._tensors()[name].shape)) for name in names]
        self.trained_specs = self.specs[len(self.base) :]
        self._sender = GlooSender(self, is_sender=True)

    def learn(self, version):
        """Another adapter."""
        generator = torch.Generator().manual_seed(version)
        self.adapter = {}
        for name in self._layers:
            out, into = self.base[name].shape
            path = PEFT + name.removesuffix("weight")
            self.adapter[path + "lora_A.weight"] = SIZE * torch.randn(RANK, into, generator=generator)
            self.adapter[path + "lora_B.weight"] = SIZE * torch.randn(out, RANK, generator=generator)

    def groups(self, specs):
        """All of them at once."""
        yield [(spec, self._tensors()[spec.name]) for spec in specs]

    def _tensors(self):
        return self.base | self.adapter

    @torch.no_grad()
    def scores(self, prompt, answer):
        """float32 [T] of an answer."""
        merged = dict(self.base)
        for name in self._layers:
            path = PEFT + name.removesuffix("weight")
            product = self.adapter[path + "lora_B.weight"] @ self.adapter[path + "lora_A.weight"]
            merged[name] = self.base[name] + SCALE * product
        self._model.load_state_dict(merged, strict=False)
        logits = self._model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].numpy()

    async def announce(self):
        return self._sender.announce()

    async def send_weights(self):
        return await asyncio.to_thread(self._sender.send)

    async def join(self, rendezvous):
        await asyncio.to_thread(self._sender.join, rendezvous)


class Serving:
    """The trainer and the engine of this file, in one transfer group."""

    def __init__(self, engine, trainer):
        self.engine, self.trainer = engine, trainer
        self.engine.name = "rollout-0"
        self.version = 0

    async def meet(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workers = self.engine._settings.tensor_parallel
        there = Rendezvous("127.0.0.1", port, 1 + workers, MIB, LIMIT_S, segment="")
        joining = self.engine.join_transfer(engine_init_info("gloo", there, rank_offset=1))
        await asyncio.wait_for(asyncio.gather(self.trainer.join(there), joining), LIMIT_S)

    async def publish(self):
        """The next version."""
        self.version += 1
        self.trainer.learn(self.version)
        return await publish(self.trainer, [self.engine], version=self.version, timeout_s=LIMIT_S)

    async def publish_again(self):
        """After a failure, as a run does it."""
        await self.engine.abort_update()
        await self.meet()
        return await publish(self.trainer, [self.engine], version=self.version, timeout_s=LIMIT_S)

    async def scores(self):
        """float32 [T] of the answer, by the engine."""
        return np.array(await self.engine.score([*PROMPT, *ANSWER]), np.float32)[len(PROMPT) - 1 :]

    async def sampled(self, name, *, samples=2, tokens=8):
        sampling = Sampling(max_tokens=tokens, seed=self.version)
        return await self.engine.generate(SampleRequest(name, tuple(PROMPT), samples, sampling))

    async def in_flight(self, name, *, samples=16):
        """Long completions of which some tokens are sampled."""
        asked = asyncio.ensure_future(self.sampled(name, samples=samples, tokens=64))
        while self.engine._llm.output_processor.get_num_unfinished_requests() < samples:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return asked

    async def require_right(self):
        """The engine serves this version, in what it scores and in what it samples."""
        assert gap(await self.scores(), self.trainer.scores(PROMPT, ANSWER)) < FLOAT32_GAP
        for completion in await self.sampled(f"right-{self.version}"):
            assert set(completion.versions.tolist()) == {self.version}
            expected = self.trainer.scores(PROMPT, completion.token_ids.tolist())
            assert gap(completion.logprobs, expected) < FLOAT32_GAP


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The trainer's model: other weights than those from which the engine starts, so that all of them have to come."""
    return write_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids=["alone", "sliced"]
)
async def serving(request, make_config, model, other):
    config = make_config(
        model={"path": str(model), "dtype": "float32", "adapter": {"rank": RANK, "alpha": ALPHA}},
        data={"kind": "addition", "max_prompt_tokens": 32},
        rollout={
            "max_tokens": 64,
            "max_sequences": 16,
            "kv_cache_gib": 0.05,
            "tensor_parallel": request.param,
        },
        weight_sync={"backend": "gloo", "adapter": "separate"},
        cluster={"accelerator": "cpu"},
    )
    settings = policy_engine(config, str(model), threads=1)
    faulty = replace(settings.adapter, worker="tests.system.cluster.planted_faults.FaultyWorker")
    engine = Engine(replace(settings, adapter=faulty))
    await engine.start()
    made = Serving(engine, Trainer(other))
    with pytest.raises(EngineError, match="came before the adapter; publish to this engine first"):
        await made.scores()
    await made.meet()
    sent, _ = await made.publish()
    assert sent == Total("sync/bytes", sum(spec.bytes for spec in made.trainer.specs))
    yield made
    engine.stop()


async def test_every_version_is_served_to_rounding_and_only_the_adapter_is_sent(serving):
    await serving.require_right()
    for _ in range(2):
        before = await serving.scores()
        sent, _ = await serving.publish()
        assert sent == Total("sync/bytes", sum(spec.bytes for spec in serving.trainer.trained_specs))
        await serving.require_right()
        assert gap(await serving.scores(), before) > CHANGED


@pytest.mark.parametrize(
    ("on_publish", "has_both"), [("keep", True), ("abort_and_resume", True), ("finish", False)], ids=str
)
async def test_requests_in_flight_are_completed_with_the_adapter_of_each_token(
    serving, monkeypatch, on_publish, has_both
):
    monkeypatch.setattr(serving.engine, "_pause", PAUSES[on_publish])
    asked, old = await serving.in_flight(on_publish), serving.version
    await serving.publish()
    completions = await asyncio.wait_for(asked, LIMIT_S)
    seen = {version for completion in completions for version in completion.versions.tolist()}
    assert seen == ({old, old + 1} if has_both else {old})
    for completion in completions:
        for version in set(completion.versions.tolist()):
            serving.trainer.learn(version)
            expected = serving.trainer.scores(PROMPT, completion.token_ids.tolist())
            of_version = completion.versions == version
            assert gap(completion.logprobs[of_version], expected[of_version]) < FLOAT32_GAP
    serving.trainer.learn(serving.version)
    await serving.require_right()


async def test_checksums_cover_the_adapter_and_change_with_it(serving):
    before = await serving.engine.checksums()
    await serving.publish()
    after = await serving.engine.checksums()
    layers = {name.removesuffix(" A0") for name in after[0] if name.endswith(" A0")}
    kinds = {layer.rpartition(".")[2] for layer in layers}
    assert kinds == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, "not the head, nor the embeddings"
    for old, new in zip(before, after, strict=True):
        changed = {name for name in new if new[name] != old[name]}
        assert changed == {name for name in new if " " in name}, "all of the adapter, and nothing of the model"


async def test_an_adapter_that_vllm_keeps_is_caught_and_served_by_nobody(serving):
    await serving.engine._llm.collective_rpc("keep_adapter")
    with pytest.raises(WeightMismatch, match=rf"while committing: {NOT_SERVED}: (\d+) of \1 matrices differ"):
        await serving.publish()
    asked = asyncio.ensure_future(serving.sampled("after-a-stale-one"))
    await asyncio.sleep(0.3)
    assert not asked.done()
    await serving.engine._llm.collective_rpc("mend")
    await serving.publish_again()
    for completion in await asyncio.wait_for(asked, LIMIT_S):
        assert set(completion.versions.tolist()) == {serving.version}
    await serving.require_right()


async def test_keys_and_values_of_the_last_adapter_are_dropped_or_caught(serving, monkeypatch):
    llm = serving.engine._llm
    pause = llm.pause_generation
    monkeypatch.setattr(llm, "pause_generation", lambda *, mode, clear_cache: pause(mode=mode, clear_cache=False))
    await serving.scores()
    await serving.publish()
    await serving.require_right()
    asked = await serving.in_flight("with-a-cache")
    with pytest.raises(WeightSyncError, match="still has keys and values of older weights"):
        await serving.publish()
    monkeypatch.undo()
    await serving.publish_again()
    await asyncio.wait_for(asked, LIMIT_S)
    await serving.require_right()
