import pytest

from ray_rl.catalog.models import KNOWN_SHAPES
from ray_rl.planner.engines import GRAPH_BYTES, KvCache, cpu_engine_memory, engine_memory, kv_token_bytes
from ray_rl.planner.gpus import GPUS
from ray_rl.sizes import GIB
from tests.unit.planner.conftest import SEVEN, SEVENTY

H100 = GPUS["h100-80gb"]


@pytest.mark.parametrize(("size", "kib"), [(1, 320), (4, 80), (8, 40), (16, 40)])
def test_keys_and_values_are_shared_up_to_the_number_of_key_heads(size, kib):
    assert kv_token_bytes(KNOWN_SHAPES[SEVENTY], element=2, tensor_parallel=size) == kib * 1024


def test_the_cache_takes_what_the_share_of_the_gpu_leaves(make):
    memory, cache = engine_memory(make(), KNOWN_SHAPES[SEVEN], H100)
    assert memory.peak == pytest.approx(0.9 * H100.memory_bytes)
    assert memory.held["KV cache"] == cache.total
    assert cache.sequences == int(cache.total // (cache.token * 2048)) > 100


def test_without_graphs_there_is_more_for_the_cache(make):
    eager = make(rollout={"max_tokens": 1536, "enforce_eager": True})
    _, with_graphs = engine_memory(make(), KNOWN_SHAPES[SEVEN], H100)
    _, without = engine_memory(eager, KNOWN_SHAPES[SEVEN], H100)
    assert without.total - with_graphs.total == GRAPH_BYTES


def test_weights_that_are_too_large_leave_no_sequence(make):
    memory, cache = engine_memory(make(), KNOWN_SHAPES[SEVENTY], H100)
    assert cache.total < 0
    assert (cache.sequences, memory.held["KV cache"]) == (0, 0)


def test_a_cache_holds_whole_sequences():
    assert KvCache(total=100.0, token=3.0, longest=10).sequences == 3


def test_on_cpu_the_cache_is_what_is_asked_for(make):
    config = make(rollout={"kv_cache_gib": 0.5, "max_tokens": 24}, cluster={"accelerator": "cpu"})
    memory, cache = cpu_engine_memory(config, KNOWN_SHAPES["smollm2-135m-instruct"])
    assert memory.held["KV cache"] == cache.total == 0.5 * GIB
    assert cache.token == 2 * 2 * 30 * 192
