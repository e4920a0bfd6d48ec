from dataclasses import replace

import pytest

from ray_rl.catalog.models import KNOWN_SHAPES
from ray_rl.config.train import Offload, TrainConfig
from ray_rl.planner.compute import EXPOSED, HOST_MEMORY_BYTES_PER_S, OPTIMIZER_BYTES, Load, Team, scoring_s, training_s
from ray_rl.planner.gpus import GPUS
from ray_rl.planner.layout import Place
from ray_rl.planner.rates import Rates

SHAPE = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
N = SHAPE.parameters
RATES = Rates.of(GPUS["h100-80gb"].speed, "bfloat16")
LOAD = Load(64, 64 * 2048, 64 * 2048**2)
FREE = replace(RATES, launch_s=1e-12, link=1e30, network=1e30, memory=1e30)
"""Nothing costs time but the products of matrices."""


def team(workers, *, nodes=1, rates=RATES):
    each = workers // nodes
    return Team.at([Place(node, (gpu,)) for node in range(nodes) for gpu in range(each)], rates)


def trained(who, *, rates=None, load=LOAD, updates=1, epochs=1, **settings):
    config = TrainConfig(workers=who.workers, **settings)
    return training_s(who, config, SHAPE, N, load, updates=updates, epochs=epochs, element=2)


def test_a_forward_pass_takes_2_operations_a_parameter_and_token_and_those_of_the_attention():
    attention = 2 * 28 * 3584 * 64 * 2048**2
    assert LOAD.operations(N, SHAPE) == 2 * N * 64 * 2048 + attention
    assert attention / LOAD.operations(N, SHAPE) == pytest.approx(0.026, abs=0.001)


def test_training_takes_three_passes_and_a_fourth_with_checkpointing():
    plain, again = (trained(team(4, rates=FREE), zero_stage=2, gradient_checkpointing=on) for on in (False, True))
    assert plain == pytest.approx(3 * LOAD.operations(N, SHAPE) / (4 * FREE.training))
    assert again == pytest.approx(plain * 4 / 3)
    assert trained(team(4, rates=FREE), zero_stage=2, epochs=2) == pytest.approx(2 * plain)


def test_small_micro_batches_pay_for_every_layer_and_exchange():
    small, large = (trained(team(4), zero_stage=3, micro_batch_tokens=tokens) for tokens in (2048, 16384))
    bound = 3 * LOAD.operations(N, SHAPE) / (4 * RATES.training)
    assert bound < large < small
    assert small > 1.25 * bound


def test_the_share_of_the_peak_rises_with_the_micro_batch_and_the_model():
    """The saturating curve: 6 N operations a token over the seconds and the peak, without exchange on one GPU."""

    def share(name, tokens):
        shape = KNOWN_SHAPES[name]
        load = Load(1024, 1024 * 512, 1024 * 512**2)
        config = TrainConfig(micro_batch_tokens=tokens)
        seconds = training_s(team(1), config, shape, shape.parameters, load, updates=1, epochs=1, element=2)
        return 6 * shape.parameters * load.tokens / seconds / GPUS["h100-80gb"].speed.tensor_flops

    small = [share("Qwen/Qwen2.5-0.5B", tokens) for tokens in (512, 2048, 8192, 32768)]
    assert small == sorted(small)
    assert small[0] < 0.12 < 0.3 < small[-1] < 0.4
    assert share("Qwen/Qwen2.5-7B", 2048) > 0.3


def test_between_nodes_all_ports_of_a_node_work_together():
    near, far, thin = team(8), team(16, nodes=2), team(2, nodes=2)
    assert near.bus == RATES.link
    assert far.bus == min(RATES.link, 8 * RATES.network)
    assert thin.bus == RATES.network
    assert (near.on_node, thin.on_node) == (8, 1)
    assert near.exchanged_s(1e9) == pytest.approx(1e9 * 7 / 8 / RATES.link)


def test_stage_3_exchanges_weights_for_every_micro_batch_and_stage_1_only_gradients():
    free = replace(RATES, launch_s=1e-12, memory=1e30)
    compute = trained(team(4, rates=FREE), zero_stage=1)
    who = team(4, rates=free)
    micro = who.micro_batches(LOAD, 4096)
    assert micro == pytest.approx(16 / 1.5)
    once = who.exchanged_s(2 * N)
    exposed = trained(who, zero_stage=3) - compute
    assert exposed == pytest.approx(EXPOSED * 3 * micro * once, rel=1e-3)
    assert trained(who, zero_stage=2) - compute == pytest.approx(EXPOSED * micro * once + once, rel=1e-3)
    assert trained(who, zero_stage=1) - compute == pytest.approx(EXPOSED * 2 * once + once, rel=1e-3)
    assert trained(who, zero_stage=0) - compute == pytest.approx(EXPOSED * 2 * once, rel=1e-3)


def test_offloaded_state_crosses_to_the_host():
    who, shard = team(4), N / 4
    there, host = (trained(who, zero_stage=3, offload=Offload(optimizer=on), updates=2) for on in (False, True))
    on_gpu = OPTIMIZER_BYTES * shard / RATES.memory
    on_host = 6 * shard / RATES.host + OPTIMIZER_BYTES * shard * 4 / HOST_MEMORY_BYTES_PER_S
    assert host - there == pytest.approx(2 * (on_host - on_gpu))
    both = trained(who, zero_stage=3, offload=Offload(optimizer=True, parameters=True))
    moved = 2 * who.micro_batches(LOAD, 4096) * 2 * shard / RATES.host
    alone = trained(who, zero_stage=3, offload=Offload(optimizer=True))
    assert both - alone == pytest.approx(EXPOSED * moved)


def test_a_pass_without_gradients_is_a_third_of_training_or_less():
    scored = scoring_s(team(4, rates=FREE), SHAPE, N, LOAD, budget=4096)
    assert scored == pytest.approx(LOAD.operations(N, SHAPE) / (4 * FREE.scoring))
    gathered = scoring_s(team(4), SHAPE, N, LOAD, budget=4096, gathered=2 * N)
    offloaded = scoring_s(team(4), SHAPE, N, LOAD, budget=4096, gathered=2 * N, offloaded=N / 2)
    assert scored < gathered < offloaded
