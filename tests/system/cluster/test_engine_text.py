"""What a real engine makes of tokens: their text, and where they end. In this process, without Ray."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_rl.app.engines import policy_engine
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.tokenizer import ModelTokenizer
from ray_rl.errors import DataError
from ray_rl.rollout.engine import Engine
from ray_rl.rollout.request import SampleRequest, Sampling
from ray_rl.types import Completion
from ray_rl.weight_sync.plugin import SHARED_MEMORY
from tests.tokenizer_shapes import SHAPES, TEXTS, reference

# vLLM leaves its context of ZeroMQ to the collector; in an actor the process ends with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SAMPLES = 96
LIMIT = 40
STOP = ["<think>", "e", "\u0120"]
"""A token that was added, a letter inside of many tokens, and how byte-level tokens spell a space."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under a byte-level tokenizer that is called Llama's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = SHAPES[0].write(tmp_path_factory.mktemp("engine") / "model")
    config = LlamaConfig(
        vocab_size=reference(folder).get_vocab_size(),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def engine(make_config, model: Path, **rollout: object) -> Engine:
    config = make_config(
        model={"path": str(model), "dtype": "float32"},
        data={"kind": "addition", "max_prompt_tokens": 64},
        rollout={"max_tokens": LIMIT, "kv_cache_gib": 0.1, "max_sequences": 32, **rollout},
        cluster={"accelerator": "cpu"},
    )
    return Engine(replace(policy_engine(config, str(model), threads=1), transfer_backend=SHARED_MEMORY))


@pytest.fixture(scope="module")
def completions(make_config, model) -> list[Completion]:
    async def sampled() -> list[Completion]:
        serving, tokenizer = engine(make_config, model), ChatTokenizer(model)
        await serving.start()
        try:
            ends = tokenizer.ends(STOP, (), chat=True)
            sampling = Sampling(max_tokens=LIMIT, seed=0, stop=ends.texts, stop_token_ids=ends.token_ids)
            prompt = tokenizer.encode(TEXTS[0], chat=True)
            completions = await serving.generate(SampleRequest("r", prompt, SAMPLES, sampling))
            unscored = replace(sampling, logprobs=False)
            for same, without in zip(
                completions, await serving.generate(SampleRequest("s", prompt, SAMPLES, unscored)), strict=True
            ):
                assert same.token_ids.tolist() == without.token_ids.tolist()
                assert np.isfinite(same.logprobs).all()
                assert np.isnan(without.logprobs).all()
            return completions
        finally:
            serving.stop()

    return asyncio.run(sampled())


def ends_of(model: Path) -> set[int]:
    return {reference(model).token_to_id(token) for token in ("</s>", "<think>")}


def test_text_is_what_the_library_decodes_up_to_the_stop(completions, model):
    library = reference(model)
    cut = 0
    for completion in completions:
        whole = library.decode(completion.token_ids.tolist())
        at = whole.find("e")
        assert completion.text == (whole if at < 0 else whole[: at + 1])
        cut += at >= 0 and len(completion.text) < len(whole)
    assert cut >= 3, "some tokens have letters behind the stop"
    assert any(" " in completion.text for completion in completions)


def test_a_completion_ends_with_its_first_end_and_says_so(completions, model):
    ends = ends_of(model)
    seen = set()
    for completion in completions:
        token_ids = completion.token_ids.tolist()
        assert not ends & set(token_ids[:-1])
        is_ended = token_ids[-1] in ends or completion.text.endswith("e")
        assert completion.finish_reason == ("stop" if is_ended else "length")
        assert is_ended or len(token_ids) == LIMIT
        seen.add(token_ids[-1] if token_ids[-1] in ends else completion.finish_reason)
    assert seen >= ends, "the end of a turn, which no decoded text shows, and the added token"


def test_an_engine_that_reads_the_tokenizer_otherwise_is_refused_with_both_values(make_config, model, monkeypatch):
    """As it would with the model's own folder."""
    monkeypatch.setattr(ModelTokenizer, "save_for_engine", lambda self, folder: self.folder)
    with pytest.raises(
        DataError, match=r"vLLM's tokenizer differs from tokenizer.json: 'The answer is 42.* in tokenizer.js"
    ):
        asyncio.run(engine(make_config, model).start())
