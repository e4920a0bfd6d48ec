"""The adapter of an engine: what vLLM is told of it, and what its requests say."""

import asyncio

import pytest

from ray_rl.errors import EngineError, WeightMismatch, WeightSyncError
from ray_rl.rollout.adapter import EngineAdapter
from ray_rl.rollout.engine import Engine, EngineSettings
from ray_rl.rollout.receiver import NOT_SERVED, WeightReceiver

ADAPTER = EngineAdapter(most_rank=16, scale=2.0, targets=("q_proj",), worker="package.Worker")


def test_vllm_makes_room_for_one_adapter_in_the_layers_that_it_changes():
    assert ADAPTER.arguments == {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": 16,
        "lora_target_modules": ["q_proj"],
        "worker_extension_cls": "package.Worker",
    }


class Llm:
    """vLLM's methods at the end of an update; its worker may have a complaint, and the prefix cache may stay."""

    def __init__(self, *, complaint=None, drops_cache=True):
        self.asked = []
        self._complaint, self._drops_cache = complaint, drops_cache

    async def finish_weight_update(self):
        self.asked.append("finish")

    async def collective_rpc(self, method, args=()):
        self.asked.append((method, *args))
        return [self._complaint] if method == "install_adapter" else [{"q_proj A0": "1"}]

    async def reset_prefix_cache(self):
        self.asked.append("reset")
        return self._drops_cache

    async def update_weight_version(self, version):
        self.asked.append(("version", version))

    async def get_weight_version(self):
        return self.asked[-1][1]

    async def compute_weight_checksums(self):
        return [{"norm": "0"}]


def commit(llm, adapter=ADAPTER):
    return asyncio.run(WeightReceiver(llm, adapter=adapter).commit(7))


def test_the_adapter_is_installed_after_vllm_has_ended_the_update_and_before_the_version_changes():
    llm = Llm()
    assert commit(llm) == 7
    assert llm.asked == ["finish", ("install_adapter", 2.0), "reset", ("version", "7")]


def test_an_engine_without_an_adapter_installs_none():
    llm = Llm()
    commit(llm, None)
    assert llm.asked == ["finish", "reset", ("version", "7")]


def test_an_adapter_that_vllm_does_not_serve_is_a_mismatch_and_the_version_stays():
    llm = Llm(complaint=f"{NOT_SERVED}: 1 of 2 matrices differ (q_proj A0)")
    with pytest.raises(WeightMismatch, match=rf"^{NOT_SERVED}: 1 of 2 matrices differ \(q_proj A0\)$"):
        commit(llm)
    assert llm.asked == ["finish", ("install_adapter", 2.0)]


def test_keys_and_values_of_older_weights_are_an_error_and_the_version_stays():
    llm = Llm(drops_cache=False)
    with pytest.raises(WeightSyncError, match=r"keys and values of older weights .* version 7"):
        commit(llm)
    assert llm.asked[-1] == "reset"


def test_checksums_cover_the_adapter():
    assert asyncio.run(WeightReceiver(Llm(), adapter=ADAPTER).checksums()) == [{"norm": "0", "q_proj A0": "1"}]


def test_no_request_is_answered_before_the_adapter_is_there():
    engine = Engine(EngineSettings(model="", dtype="float32", context_tokens=8, on_cpu=True, adapter=ADAPTER))
    with pytest.raises(EngineError, match="request r came before the adapter; publish to this engine first"):
        engine._adapter_for("request r")


def test_an_engine_without_an_adapter_names_none():
    engine = Engine(EngineSettings(model="", dtype="float32", context_tokens=8, on_cpu=True))
    assert engine._adapter_for("request r") is None
