"""Three steps of GRPO with adapters, in float32: two ranks of DeepSpeed ZeRO-3 and two vLLM engines.

Do the engines compute what the trainer computes, whether the adapters are published by themselves or merged?
"""

import pytest
import pytest_asyncio

from ray_rl.weight_sync.audit import require_same
from tests.system.cluster.scores import FLOAT32_GAP, engine_scores, gap, trainer_scores
from tests.system.cluster.whole_run import started
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS = 3
QUESTION, ANSWER = "What is 3+4? Answer with a number.", "3 + 4 is 7 the sum of 4 and 3"
LEARNT_GAP = 1e-3
"""Less than the answer's log-probabilities change in the run."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=["separate", pytest.param("merged", marks=pytest.mark.long)]
)
async def trained(request, connected, make_config, model):
    from ray_rl.data.chat import ChatTokenizer

    config = make_config(
        run={"name": f"adapters-{request.param}", "dir": str(model.parent), "steps": STEPS},
        model={"path": str(model), "dtype": "float32", "adapter": {"rank": 4}},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rewards=[{"kind": "number", "require_stop": False}],
        algorithm={"prompts_per_step": 8, "group_size": 4},
        rollout={"engines": 2, "max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        train={"workers": 2, "zero_stage": 3, "learning_rate": 1e-2},
        weight_sync={"adapter": request.param, "bucket_mib": 1, "timeout_s": 60},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )
    tokenizer = ChatTokenizer(model)
    prompt, answer = list(tokenizer.encode(QUESTION, chat=True)), list(tokenizer.encode(ANSWER, chat=False))
    async with started(config, model) as run:
        before = await trainer_scores(run.workers.actor, prompt, answer)
        await run.train()
        trainer = await trainer_scores(run.workers.actor, prompt, answer)
        engines = [await engine_scores(engine, prompt, answer) for engine in run.workers.engines]
        checksums = {engine.name: await engine.checksums() for engine in run.workers.engines}
        yield run, before, trainer, engines, checksums


async def test_the_engines_give_the_trainers_log_probabilities_and_no_longer_those_of_version_0(trained):
    _, before, trainer, engines, _ = trained
    assert gap(trainer, before) > LEARNT_GAP
    for scores in engines:
        assert gap(scores, trainer) < FLOAT32_GAP


async def test_every_rollout_was_scored_by_the_trainer_as_by_its_engine(trained):
    lines = trained[0].records()
    assert [line["version"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["policy/grad_norm"] > 0
        assert line["sync/logprob_gap_max"] < FLOAT32_GAP


async def test_the_engines_have_loaded_the_same_weights_and_adapters(trained):
    run, *_, checksums = trained
    assert 0 < require_same(checksums) < 1, "vLLM packs some of the weights on CPU"
    adapters = [name for name in checksums["rollout-0"][0] if name.endswith((" A0", " B0"))]
    assert len(adapters) == (32 if run.config.publishes_adapters else 0), "4 layers of 4 matrices"


async def test_publishes_carry_what_is_trained_and_nothing_else(trained):
    run, *_ = trained
    sizes = {line["sync/bytes"] for line in run.records()}
    layers, hidden, heads, inner, rank = 4, 128, (128, 64, 64), 256, 4
    pairs = [(hidden, out) for out in heads] + [(hidden, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
    matrices = sum(layers * into * out for into, out in pairs)
    adapters = sum(layers * rank * (into + out) for into, out in pairs)
    assert sizes == {4 * (adapters if run.config.publishes_adapters else matrices)}
