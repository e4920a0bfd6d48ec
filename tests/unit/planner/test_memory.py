import pytest

from ray_rl.catalog.models import KNOWN_SHAPES
from ray_rl.config.train import REDUCE_BUCKET
from ray_rl.planner.activations import trained_activations
from ray_rl.planner.memory import (
    CONTEXT_BYTES,
    LIVE_PARAMETERS,
    Memory,
    reference_memory,
    reward_memory,
    trained_memory,
)
from ray_rl.sizes import MIB
from tests.unit.planner.conftest import SEVEN

SHAPE = KNOWN_SHAPES[SEVEN]
N = SHAPE.parameters
BUCKET = REDUCE_BUCKET["gpu"]


def actor(config):
    return trained_memory(config, "actor", config.train, SHAPE)


def test_the_peak_is_what_stays_and_the_largest_phase():
    memory = Memory(
        "actor", {"weights": 10.0}, {"backward": {"activations": 3.0, "logits": 2.0}, "step": {"step": 4.0}}
    )
    assert (memory.states, memory.peak) == (10, 15)
    assert memory.terms() == {"weights": 10, "activations": 3, "logits": 2, "step": 4}


def test_a_role_without_phases_takes_what_stays():
    assert Memory("actor", {"weights": 10.0}, {}).peak == 10


def test_the_terms_of_an_actor_under_zero_2(make):
    memory = actor(make(train={"workers": 4, "zero_stage": 2}))
    assert memory.held == {
        "context": CONTEXT_BYTES,
        "weights": 2 * N,
        "gradients": 4 * N / 4,
        "optimizer": 12 * N / 4,
        "buckets": 2 * BUCKET,
    }
    assert set(memory.phases) == {"backward", "step", "sync"}
    assert memory.phases["sync"]["sync"] == 3 * 64 * MIB


def test_zero_3_gathers_weights_and_reduces_through_copies(make):
    memory = actor(make(train={"workers": 4, "zero_stage": 3}))
    assert memory.held["gathered"] == 2 * LIVE_PARAMETERS
    assert memory.held["buckets"] == BUCKET * (2 + 2 + 4 / 4)
    assert memory.phases["step"]["step"] == 4 * LIVE_PARAMETERS
    assert memory.phases["sync"]["sync"] == 2 * 2 * SHAPE.embedding_parameters + 3 * 64 * MIB


def test_zero_1_widens_the_bucket_where_it_sums_in_float32(make):
    assert actor(make(train={"workers": 4, "zero_stage": 1})).held["buckets"] == 4 * BUCKET
    narrow = make(train={"workers": 4, "zero_stage": 1, "gradient_dtype": "bfloat16"})
    assert actor(narrow).held["buckets"] == 2 * BUCKET


def test_deepspeed_settings_of_the_user_count(make):
    zero = {"reduce_bucket_size": 1000, "stage3_max_live_parameters": 10**8, "sub_group_size": 500}
    memory = actor(make(train={"workers": 4, "zero_stage": 3, "deepspeed": {"zero_optimization": zero}}))
    assert memory.held["buckets"] == 5000
    assert memory.held["gathered"] == 2 * SHAPE.embedding_parameters  # the largest module, in any case
    assert memory.phases["step"]["step"] == 2000
    odd = make(train={"workers": 4, "zero_stage": 3, "deepspeed": {"zero_optimization": None}})
    assert actor(odd).held["gathered"] == 2 * LIVE_PARAMETERS


@pytest.mark.parametrize(("stage", "gradients"), [(1, 6 * N), (2, 0), (3, 0)])
def test_an_offloaded_optimizer_is_in_the_memory_of_the_host(make, stage, gradients):
    memory = actor(make(train={"workers": 4, "zero_stage": stage, "offload": {"optimizer": True}}))
    assert (memory.held["optimizer"], memory.held["gradients"]) == (0, gradients)
    assert memory.phases["step"]["step"] == 0
    assert memory.offloaded == (4 + 8 + 4 + 2) * N / 4


def test_offloaded_parameters_leave_what_is_gathered(make):
    memory = actor(make(train={"workers": 4, "zero_stage": 3, "offload": {"parameters": True}}))
    assert memory.held["weights"] == 0
    assert memory.held["gathered"] > 0
    assert memory.offloaded == 2 * N / 4


def test_on_cpu_nothing_moves_and_only_the_largest_gradient_is_in_transit(make):
    memory = trained_memory(
        config := make(
            model={"path": "smollm2-135m-instruct", "dtype": "float32"},
            train={"workers": 2, "zero_stage": 3, "offload": {"optimizer": True}},
            cluster={"accelerator": "cpu"},
        ),
        "actor",
        config.train,
        small := KNOWN_SHAPES["smollm2-135m-instruct"],
    )
    assert memory.offloaded == 0
    assert "context" not in memory.held
    assert memory.held["optimizer"] == 12 * small.parameters / 2
    assert memory.held["buckets"] == (2 * 4 + 4) * small.embedding_parameters  # gloo copies once more
    alone = config.train.model_copy(update={"workers": 1})
    assert trained_memory(config, "actor", alone, small).held["buckets"] == 2 * 4 * small.embedding_parameters
    zero = {"zero_optimization": {"reduce_bucket_size": 10**9}}
    own = config.train.model_copy(update={"deepspeed": zero})
    assert trained_memory(config, "actor", own, small).held["buckets"] == (2 * 4 + 4) * small.parameters


def test_a_worker_alone_under_stage_0_copies_no_gradients_to_reduce_them(make):
    held = {workers: actor(make(train={"workers": workers, "zero_stage": 0})).held["buckets"] for workers in (1, 2)}
    assert held == {1: 0, 2: 2 * BUCKET}


def test_a_critic_has_a_head_of_one_number_and_neither_logits_nor_sync(make):
    config = make(critic={"workers": 4, "zero_stage": 2})
    memory = trained_memory(config, "critic", config.critic, SHAPE)
    assert memory.held["weights"] == 2 * SHAPE.scorer_parameters
    assert "logits" not in memory.terms()
    assert "sync" not in memory.phases


def test_a_micro_batch_is_at_least_one_sequence(make):
    short, budget = make(train={"micro_batch_tokens": 16}), make(train={"micro_batch_tokens": 2048})
    assert actor(short) == actor(budget)


def test_the_reference_is_whole_shared_or_offloaded(make):
    config = make(algorithm={"kl": {"coefficient": 0.1}}, reference={"workers": 4})
    whole = reference_memory(config, config.reference, SHAPE)
    shared = reference_memory(config, config.reference.model_copy(update={"zero_stage": 3}), SHAPE)
    away = reference_memory(config, config.reference.model_copy(update={"zero_stage": 3, "offload": True}), SHAPE)
    assert (whole.held["weights"], shared.held["weights"], away.held["weights"]) == (2 * N, 2 * N / 4, 0)
    assert "gathered" not in whole.held
    assert shared.held["gathered"] == away.held["gathered"] == 2 * LIVE_PARAMETERS
    assert (shared.offloaded, away.offloaded) == (0, 2 * N / 4)


def test_the_fullest_reward_worker_holds_the_largest_models(make):
    small, large = KNOWN_SHAPES["Qwen/Qwen2.5-0.5B"], SHAPE
    config = make(
        rewards=[
            {"kind": "model", "paths": ["a", "b", "c"], "workers": 2, "max_tokens": 256, "micro_batch_tokens": 512}
        ]
    )
    memory = reward_memory(config, config.reward_models, [small, large, small])
    assert memory.held["weights"] == 2 * (large.scorer_parameters + small.scorer_parameters)
    uncut = config.reward_models.model_copy(update={"max_tokens": None})
    assert reward_memory(config, uncut, [large]).peak > reward_memory(config, config.reward_models, [large]).peak


@pytest.mark.parametrize(("accelerator", "tokens"), [("cpu", 256), ("gpu", 1024)])
def test_a_chunk_of_logits_that_is_not_set_follows_the_accelerator(make, accelerator, tokens):
    cluster = {"accelerator": accelerator}
    written = make(cluster=cluster, train={"logit_chunk_tokens": tokens})
    assert make(cluster=cluster).logit_chunk_tokens == tokens
    assert actor(make(cluster=cluster)).phases == actor(written).phases
    small = make(cluster=cluster, train={"logit_chunk_tokens": 7})
    assert small.logit_chunk_tokens == 7
    assert actor(small).phases != actor(written).phases


@pytest.mark.parametrize(("accelerator", "residual"), [("cpu", 4), ("gpu", 2)])
def test_layers_that_are_computed_again_keep_a_residual_of_float32_on_cpu(make, accelerator, residual):
    train = {"gradient_checkpointing": True, "micro_batch_tokens": 4096}
    found = actor(make(cluster={"accelerator": accelerator}, train=train)).phases["backward"]["activations"]
    assert found == trained_activations(SHAPE, tokens=4096, element=2, residual=residual, checkpointing=True)
