"""The real thing, small: two ranks of DeepSpeed ZeRO-3, two vLLM engines, three steps of the loop, in float32.

Then: does every engine serve exactly what the trainer has?
"""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from ray_rl.rollout.request import SampleRequest, Sampling
from tests.system.cluster.scores import FLOAT32_GAP, engine_scores, gap, trainer_scores
from tests.system.cluster.whole_run import Started, started
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS = 3
QUESTION = "What is 3+4? Answer with a number."
ANSWER = "3 + 4 is 7 the sum of 4 and 3"


@dataclass
class Trained:
    """A run after its last step, with its workers still there."""

    run: Started
    prompt: list[int]
    answer: list[int]
    scores_of_version_0: list[np.ndarray]

    @property
    def workers(self) -> Any:
        return self.run.workers

    @property
    def export(self) -> Path:
        return self.run.folder.export

    async def engine_scores(self) -> list[np.ndarray]:
        """float32 [T] of the answer, by engine."""
        return [await engine_scores(engine, self.prompt, self.answer) for engine in self.workers.engines]

    async def trainer_scores(self) -> np.ndarray:
        """float32 [T] of the answer."""
        return await trainer_scores(self.workers.actor, self.prompt, self.answer)

    async def free_address(self) -> tuple[str, int]:
        return await self.workers.actor.meeting_place()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def config(connected, make_config, model):
    return make_config(
        "three-steps",
        run={"name": "three-steps", "dir": str(model.parent), "steps": STEPS},
        model={"path": str(model), "dtype": "float32"},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rewards=[{"kind": "number", "require_stop": False}],
        algorithm={"prompts_per_step": 8, "group_size": 4},
        rollout={"engines": 2, "max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        train={"workers": 2, "zero_stage": 3, "learning_rate": 1e-3},
        weight_sync={"bucket_mib": 1, "timeout_s": 60},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def trained(config, model):
    from ray_rl.data.chat import ChatTokenizer

    tokenizer = ChatTokenizer(model)
    prompt = list(tokenizer.encode(QUESTION, chat=True))
    answer = list(tokenizer.encode(ANSWER, chat=False))
    async with started(config, model) as run:
        before = [await engine_scores(engine, prompt, answer) for engine in run.workers.engines]
        await run.train(export_to=run.folder.export)
        yield Trained(run, prompt, answer, before)


@pytest.fixture(scope="module")
def lone(connected, model):
    """A fresh vLLM with the weights of version 0."""
    import ray

    from tests.system.cluster.lone_engine import LoneEngine

    handle = ray.remote(LoneEngine).options(num_cpus=1).remote(str(model))
    yield handle
    ray.kill(handle)


async def test_what_computes_is_a_fork_of_the_engines_worker_without_its_connections(trained):
    for engine in trained.workers.engines:
        worker = engine.process._family.members[0].pid
        (core,) = [pid for pid in _descendants(worker) if _line(f"/proc/{pid}/cmdline").startswith("VLLM::EngineCore")]
        assert _place_of_torch(core) == _place_of_torch(worker), "imported once"
        assert _connections(worker), "Ray's"
        assert not _connections(core) & _connections(worker)


async def test_every_engine_samples_with_the_version_of_the_trainer(trained):
    for engine in trained.workers.engines:
        request = SampleRequest("after", tuple(trained.prompt), 2, Sampling(max_tokens=16, seed=0))
        completions = await engine.generate(request)
        assert {int(version) for completion in completions for version in completion.versions} == {STEPS}


async def test_the_engines_give_the_trainers_log_probabilities_and_no_longer_those_of_version_0(trained):
    trainer = await trained.trainer_scores()
    for after, before in zip(await trained.engine_scores(), trained.scores_of_version_0, strict=True):
        assert gap(after, trainer) < FLOAT32_GAP
        assert gap(after, before) > 1e-2


async def test_all_three_updates_trained_and_every_rollout_was_scored_by_the_trainer_as_by_its_engine(trained):
    lines = trained.run.records()
    assert [line["version"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["policy/grad_norm"] > 0
        assert line["sync/logprob_gap_max"] < FLOAT32_GAP


async def test_the_exported_weights_are_the_trainers_bit_for_bit_and_a_tied_head_goes_stale_without_the_remedy(
    trained, lone
):
    """One publish to two others: an engine that lacks the remedy, and a listener that keeps the bytes."""
    from safetensors.torch import load_file

    from ray_rl.training.gather import ParameterSpec
    from ray_rl.weight_sync.messages import Rendezvous
    from ray_rl.weight_sync.proof import digest
    from ray_rl.weight_sync.transports import engine_init_info
    from tests.weight_listener import WeightListener

    actor = trained.workers.actor
    update_info = await actor.announce()
    specs = [
        ParameterSpec(*spec)
        for spec in zip(*(update_info[key] for key in ("names", "dtype_names", "shapes")), strict=True)
    ]
    rendezvous = Rendezvous(*await trained.free_address(), world=3, capacity_bytes=2**20, timeout_s=60.0, segment="")
    await lone.score.remote(trained.prompt)  # it is there
    listener = WeightListener(rendezvous, 2, specs)
    init_info = engine_init_info("gloo", rendezvous, rank_offset=1)
    await asyncio.gather(actor.join_transfer(rendezvous), _settled(lone.join_transfer.remote(init_info)))
    sent, _ = await asyncio.gather(actor.send_weights(), _settled(lone.receive.remote(update_info)))
    listener.join(30)

    exported = load_file(trained.export / "model.safetensors")
    assert exported.keys() == listener.received.keys() == set(update_info["names"])
    for name, tensor in exported.items():
        assert tensor.numpy().tobytes() == listener.received[name].numpy().tobytes(), name
        assert sent.digests[name] == {0: digest(tensor)}

    trainer = await trained.trainer_scores()
    stale = await lone.score.remote(trained.prompt + trained.answer)
    assert gap(np.array(stale[len(trained.prompt) - 1 :]), trainer) > 1e-3
    await lone.repack_tied_head.remote()
    fresh = await lone.score.remote(trained.prompt + trained.answer)
    assert gap(np.array(fresh[len(trained.prompt) - 1 :]), trainer) < FLOAT32_GAP


async def test_the_slices_of_the_ranks_make_up_the_whole_weights(trained):
    """What goes through shared memory, where trainer and engines share a host."""
    from safetensors.torch import load_file

    def slices(policy):
        stream = policy.stream
        return [
            (spec.name, start, part.numpy()) for spec, (start, part) in zip(stream.specs, stream.slices(), strict=True)
        ]

    by_rank = await trained.workers.actor.team.all(slices)
    exported = load_file(trained.export / "model.safetensors")
    written = {name: np.full(tensor.numel(), np.nan, np.float32) for name, tensor in exported.items()}
    for name, start, part in (part for rank in by_rank for part in rank):
        written[name][start : start + len(part)] = part
    assert sum(len(part) for rank in by_rank for _, _, part in rank) == sum(map(len, written.values()))
    for name, tensor in exported.items():
        assert tensor.numpy().tobytes() == written[name].tobytes(), name


async def test_the_export_gives_one_greedy_answer_in_transformers_and_in_a_fresh_vllm(trained, lone):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = 12
    policy = AutoModelForCausalLM.from_pretrained(trained.export, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained.export)
    message = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert prompt["input_ids"][0].tolist() == trained.prompt
    answer = policy.generate(**prompt, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    await lone.serve.remote(str(trained.export))
    served = await lone.greedy.remote(trained.prompt, tokens=tokens)
    assert served == answer[0, len(trained.prompt) :].tolist()
    scores = np.array(await lone.score.remote(trained.prompt + trained.answer))
    assert gap(scores[len(trained.prompt) - 1 :], await trained.trainer_scores()) < FLOAT32_GAP


async def test_engines_that_join_again_take_further_versions(trained):
    await trained.workers.weights.join(*await trained.free_address())
    await trained.workers.weights.publish(STEPS + 1)
    trainer = await trained.trainer_scores()
    for scores in await trained.engine_scores():
        assert gap(scores, trainer) < FLOAT32_GAP


async def test_a_publish_goes_on_within_seconds_without_an_engine_that_was_killed(trained):
    """Last: it leaves one engine."""
    victim = trained.workers.engines[1]
    pid = victim.process._family.members[0].pid
    processes = [pid, *_descendants(pid)]
    assert len(processes) >= 2, "the engine has processes of its own"
    os.kill(pid, signal.SIGKILL)
    start_s = time.monotonic()
    await trained.workers.weights.publish(STEPS + 2)
    assert time.monotonic() - start_s < 20
    survivor = trained.workers.engines[0]
    assert (
        gap(await engine_scores(survivor, trained.prompt, trained.answer), await trained.trainer_scores()) < FLOAT32_GAP
    )
    await _until_gone(processes, within_s=60)


def _line(file):
    return Path(file).read_text(errors="replace")


def _place_of_torch(pid):
    """The addresses of the library in a process, which are random where it was loaded."""
    maps = _line(f"/proc/{pid}/maps").splitlines()
    found = {line.split()[0] for line in maps if line.endswith("libtorch_cpu.so") and "r-xp" in line}
    assert found
    return found


def _connections(pid):
    kinds = [os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
    return {kind for kind in kinds if kind.startswith("socket:")}


async def _settled(ref):
    return await ref


def _descendants(pid):
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return [*children, *(grandchild for child in children for grandchild in _descendants(child))]


async def _until_gone(pids, *, within_s):
    give_up_s = time.monotonic() + within_s
    while left := [pid for pid in pids if _is_running(pid)]:
        assert time.monotonic() < give_up_s, f"still there: {left}"
        await asyncio.sleep(0.2)


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
