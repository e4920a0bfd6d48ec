"""Plans of runs that train adapters."""

from dataclasses import replace

import pytest

from ray_rl.catalog.models import KNOWN_SHAPES, SMOLLM2_135M
from ray_rl.config import RunConfig
from ray_rl.config.train import TrainConfig
from ray_rl.planner.activations import adapted_layer_bytes, layer_bytes, trained_activations
from ray_rl.planner.adapters import NF4_BYTES, Adapters
from ray_rl.planner.advice import changed, propose
from ray_rl.planner.assess import assess, role_memories
from ray_rl.planner.compute import EXPOSED, OPTIMIZER_BYTES, Load, Team, training_s
from ray_rl.planner.engines import engine_memory
from ray_rl.planner.gpus import GPUS, ClusterShape
from ray_rl.planner.layout import Place
from ray_rl.planner.memory import CONTEXT_BYTES, trained_memory
from ray_rl.planner.rates import SCORING_SHARE, Rates
from ray_rl.planner.report import refusal, report
from ray_rl.planner.sampling import ADAPTED_LAYER_S, ADAPTED_ON_CPU, MERGE_BYTES, engine_pace, publish_s, sync_bytes
from ray_rl.planner.search import search
from ray_rl.planner.throughput import ASSUMED, KERNELS_OF_ADAPTER, KERNELS_OF_LAYER, Assumptions, estimate
from ray_rl.sizes import GIB, MIB
from tests.unit.planner.conftest import SEVEN, SEVENTY

SHAPE = KNOWN_SHAPES[SEVEN]
N = 7_615_616_512
SCORER = N - 152_064 * 3584 + 3584
ALL = 40_370_176
"""Adapters of rank 16 of all matrices: 28 * 16 * (2 (3584 + 3584) + 2 (3584 + 512) + 3 (3584 + 18944))."""
MATRICES = 6_525_288_448
"""28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)."""
RATES = Rates.of(GPUS["h100-80gb"].speed, "bfloat16")
KL = {"kl": {"coefficient": 0.1}}
LORA = {"kind": "lora", "rank": 16}
ADAPTED = {"path": SEVEN, "dtype": "bfloat16", "adapter": LORA}


@pytest.fixture
def adapted(make):
    """A configuration with adapters of rank 16, or as given."""

    def of(*, adapter=None, **sections):
        return make(**{"model": ADAPTED | {"adapter": LORA | (adapter or {})}} | sections)

    return of


@pytest.fixture
def offline():
    def of(kind, **sections):
        given = {
            "run": {"name": "test", "steps": 10},
            "model": ADAPTED,
            "data": {"kind": "jsonl", "path": "examples.jsonl", "max_tokens": 1000},
            "algorithm": {"kind": kind},
            "cluster": {"address": "auto"},
        }
        return RunConfig.model_validate(given | sections)

    return of


def actor(config):
    return trained_memory(config, "actor", config.train, SHAPE)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [(SEVEN, ALL), ("meta-llama/Llama-3.1-8B", 41_943_040), ("smollm2-135m-instruct", 4_884_480)],
)
def test_an_adapter_of_each_matrix_has_rank_times_inputs_and_outputs(adapted, path, parameters):
    assert Adapters.of(adapted(), KNOWN_SHAPES[path]).parameters == parameters
    assert Adapters.of(adapted(adapter={"rank": 32}), KNOWN_SHAPES[path]).parameters == 2 * parameters


def test_named_matrices_have_adapters_in_each_layer(adapted):
    found = Adapters.of(adapted(adapter={"targets": ["v_proj", "q_proj"], "rank": 8}), SHAPE)
    assert found.targets == ("q_proj", "v_proj")
    assert found.parameters == 28 * 8 * (3584 + 3584 + 3584 + 512)
    assert found.matrices == 28 * 3584 * (3584 + 512)
    assert (found.largest_matrix, found.largest_part) == (3584 * 3584, 8 * 3584)


def test_the_matrices_of_all_layers_are_the_model_without_embeddings_norms_and_biases(adapted):
    assert Adapters.of(adapted(), SHAPE).matrices == MATRICES
    assert Adapters.of(adapted(), SHAPE).largest_matrix == 3584 * 18944


def test_a_matrix_that_the_shape_does_not_have_has_no_adapters(adapted):
    found = Adapters.of(adapted(adapter={"targets": ["qkv"]}), SHAPE)
    assert (found.parameters, found.largest_matrix, found.largest_part, found.room(1)) == (0, 0, 0, 0)


def test_without_adapters_everything_is_trained(make):
    assert Adapters.of(make(), SHAPE) is None
    assert "adapters" not in "\n".join(report(make(), assess(make(), ClusterShape(1, 8))))


def test_a_run_that_continues_adapters_for_a_penalty_keeps_a_second_set_of_their_weights_alone(adapted):
    new, bare, continued = (
        actor(adapted(adapter={"path": path}, algorithm=KL, reference=reference)).held
        for path, reference in ((None, {}), ("folder", {"path": SEVEN}), ("folder", {}))
    )
    assert new == bare
    assert {name: continued[name] - new[name] for name in new} == {**dict.fromkeys(new, 0), "weights": 2 * ALL}


def test_the_base_is_kept_once_and_only_adapters_have_gradients_and_optimizer_state(adapted):
    assert actor(adapted(train={"zero_stage": 1})).held == {
        "context": CONTEXT_BYTES,
        "weights": 2 * (N + ALL),
        "gradients": 6 * ALL,
        "optimizer": 12 * ALL,
        "buckets": 4 * ALL,
    }


def test_zero_3_alone_shards_the_base(adapted):
    two, three = (actor(adapted(train={"workers": 8, "zero_stage": stage})).held for stage in (2, 3))
    assert (two["weights"], three["weights"]) == (2 * (N + ALL), 2 * (N + ALL) / 8)
    for held in (two, three):
        assert held["gradients"] + held["optimizer"] == 16 * ALL / 8
    # No more elements than adapters are reduced at a time; stage 3 copies them.
    assert (two["buckets"], three["buckets"]) == (2 * ALL, (2 * 2 + 4 / 8) * ALL)


def test_offloaded_state_is_that_of_the_adapters(adapted):
    away = {"workers": 8, "zero_stage": 3, "offload": {"optimizer": True, "parameters": True}}
    assert actor(adapted(train=away)).offloaded == (18 * ALL + 2 * (N + ALL)) / 8


def test_the_trainer_of_7b_takes_20_gib(adapted):
    """The sum by hand: base 14.2, adapters of 18 bytes a parameter 0.7, activations and logits 3.5, context 1.5 GiB."""
    config = adapted(train={"zero_stage": 1, "micro_batch_tokens": 4096, "gradient_checkpointing": True})
    assert actor(config).peak == pytest.approx(20 * GIB, rel=0.05)


def test_a_critic_trains_its_head_whole_beside_its_adapters(adapted):
    config = adapted(algorithm={"kind": "ppo"}, critic={"zero_stage": 1})
    memory = trained_memory(config, "critic", config.critic, SHAPE)
    assert memory.held["weights"] == 2 * (SCORER + ALL)
    assert memory.held["optimizer"] == 12 * (ALL + 3584)


def test_members_of_an_ensemble_have_adapters_each(offline):
    config = offline("reward_model", algorithm={"kind": "reward_model", "members": 3})
    held = actor(config).held
    assert held["optimizer"] == 12 * 3 * (ALL + 3584)
    assert held["weights"] == 2 * 3 * (SCORER + ALL)


def test_on_cpu_the_largest_gradient_is_that_of_a_part_of_an_adapter(adapted):
    config = adapted(train={"workers": 2, "zero_stage": 3}, cluster={"accelerator": "cpu"})
    small = trained_memory(config, "actor", config.train, SMOLLM2_135M)
    # Two copies in bfloat16, one of gloo, and half of one in float32.
    assert small.held["buckets"] == (2 * 2 + 4 / 2 + 2) * 16 * 1536


def test_frozen_weights_need_no_inputs(adapted):
    all_linear = Adapters.of(adapted(), SHAPE)
    assert layer_bytes(SHAPE, 2) == 225_392
    assert adapted_layer_bytes(SHAPE, 2, all_linear) == 211_280
    few = Adapters.of(adapted(adapter={"targets": ["q_proj", "v_proj"]}), SHAPE)
    assert adapted_layer_bytes(SHAPE, 2, few) == 166_064
    sizes = {"tokens": 100, "element": 2, "residual": 2, "checkpointing": False}
    saved = trained_activations(SHAPE, **sizes) - trained_activations(SHAPE, **sizes, adapters=all_linear)
    assert saved == 100 * 28 * (225_392 - 211_280)


def test_a_frozen_head_has_no_gradient(make, adapted):
    full, frozen = (actor(config).phases["backward"]["logits"] for config in (make(), adapted()))
    assert full - frozen == 2 * 2 * 152_064 * 3584


def test_a_merged_publish_needs_room_for_a_layer_and_a_matrix_in_float32(adapted):
    separate, merged = (
        actor(adapted(weight_sync={"adapter": how})).phases["sync"]["sync"] for how in ("separate", "merged")
    )
    assert separate == 3 * 64 * MIB
    assert merged - separate == 2 * MATRICES / 28 + 2 * 4 * 3584 * 18944


def test_the_actor_without_adapters_is_the_reference(make, adapted):
    def memories(config):
        return role_memories(config, ClusterShape(1, 8))[0].keys()

    assert memories(make(algorithm=KL)) == {"actor", "reference", "rollout"}
    assert memories(adapted(algorithm=KL)) == {"actor", "rollout"}
    other = adapted(algorithm=KL, reference={"path": "Qwen/Qwen2.5-7B"})
    assert memories(other) == {"actor", "reference", "rollout"}


def test_an_engine_has_room_for_adapters_of_a_rank_that_vllm_knows(make, adapted):
    def room(size, **adapter):
        return Adapters.of(adapted(adapter=adapter), SHAPE).room(size)

    assert (room(1), room(1, rank=20), room(1, rank=512)) == (ALL, 2 * ALL, 32 * ALL)
    # Outputs of B are split, and for attention output and down projection inputs of A.
    assert room(4) == 28 * 16 * (4480 + 2 * 3712 + 2 * 8320 + 4480 + 8320)
    # Queries, keys and values are one matrix for vLLM.
    assert room(1, targets=["q_proj"]) == 28 * 16 * (7168 + 4096 + 4096)

    def weights(config):
        return engine_memory(config, SHAPE, GPUS["h100-80gb"])[0].held["weights"]

    assert weights(adapted()) - weights(make()) == 2 * ALL
    assert weights(adapted(weight_sync={"adapter": "merged"})) == weights(make())


def test_a_publish_sends_adapters_or_the_matrices_they_are_added_to(make, adapted):
    merged = adapted(weight_sync={"adapter": "merged"})
    assert [sync_bytes(config, SHAPE) for config in (make(), adapted(), merged)] == [2 * N, 2 * ALL, 2 * MATRICES]
    assert sync_bytes(make(), SHAPE) // sync_bytes(adapted(), SHAPE) == 188
    assert sync_bytes(adapted(cluster={"accelerator": "cpu"}), SHAPE) == 2 * MATRICES


def test_a_publish_of_adapters_takes_a_moment_and_merging_reads_and_writes_memory(make, adapted):
    def seconds(config):
        layout = assess(config, ClusterShape(1, 8)).layout
        return publish_s(config, SHAPE, layout, RATES)

    separate, merged, full = map(seconds, (adapted(), adapted(weight_sync={"adapter": "merged"}), make()))
    assert separate < 0.01 * full
    buckets = -(-2 * MATRICES // (64 * MIB))
    at_rates = 2 * MATRICES * (1 / RATES.link + 1 / RATES.digest) + buckets * 0.5e-3
    assert merged == pytest.approx(at_rates + MERGE_BYTES * MATRICES / RATES.memory)


def test_weights_that_are_frozen_have_one_product_less_in_the_backward_pass():
    free = replace(RATES, launch_s=1e-12, link=1e30, memory=1e30)
    load = Load(64, 64 * 2048, 64 * 2048**2)
    team = Team.at([Place(0, (gpu,)) for gpu in range(4)], free)

    def trained(frozen, **settings):
        config = TrainConfig(workers=4, zero_stage=2, **settings)
        return training_s(team, config, SHAPE, N, load, updates=1, epochs=1, element=2, frozen=frozen)

    product = 2 * N * load.tokens / 4 / free.training
    assert trained(0) - trained(N) == pytest.approx(product)
    assert trained(0, gradient_checkpointing=True) - trained(N, gradient_checkpointing=True) == pytest.approx(product)
    # Forward and backward without the attention: 2 products in place of 3.
    attention = 3 * 2 * 28 * 3584 * load.squares / 4 / free.training
    assert trained(N) - attention == pytest.approx((trained(0) - attention) * 2 / 3)


def test_only_gradients_of_what_is_trained_are_exchanged_and_stepped():
    load = Load(64, 64 * 2048, 64 * 2048**2)
    team = Team.at([Place(0, (gpu,)) for gpu in range(4)], replace(RATES, launch_s=1e-12, training=1e30))

    def trained(frozen, stage):
        config = TrainConfig(workers=4, zero_stage=stage)
        return training_s(team, config, SHAPE, N, load, updates=1, epochs=1, element=2, frozen=frozen)

    micro, rest = team.micro_batches(load, 4096), N - 1000
    step = OPTIMIZER_BYTES * rest / 4 / RATES.memory
    exchanged = EXPOSED * micro * team.exchanged_s(2 * rest)
    assert trained(0, 3) - trained(rest, 3) == pytest.approx(step + exchanged)
    assert trained(0, 2) - trained(rest, 2) == pytest.approx(step + exchanged + team.exchanged_s(2 * rest))


def test_kernels_of_adapters_take_time_in_small_micro_batches(adapted):
    def update_s(**adapter):
        config = adapted(adapter=adapter, train={"zero_stage": 1, "micro_batch_tokens": 2048})
        return estimate(config, assess(config, ClusterShape(1, 8)), Assumptions(rates=slow)).update_s

    slow = replace(RATES, training=1e30, memory=1e30)
    few, many = update_s(targets=["q_proj"]), update_s()
    assert many / few == pytest.approx((1 + 7 * KERNELS_OF_ADAPTER / KERNELS_OF_LAYER) / (1 + 4 / 25))


def test_the_actor_scores_once_more_as_the_reference(adapted):
    at_once = {"rollout": {"max_tokens": 1536, "score_as_finished": False}}

    def score_s(algorithm):
        config = adapted(algorithm=algorithm, **at_once)
        return estimate(config, assess(config, ClusterShape(1, 8))).score_s

    old = {"minibatches": 2, "old_policy": "trainer"}
    assert score_s({}) == 0
    assert score_s(KL) > 2 * N * 64 * 2048 / (989.4e12 * SCORING_SHARE)
    assert score_s(KL | old) == pytest.approx(2 * score_s(KL))


def test_a_pair_is_compared_with_the_base_before_the_first_step_or_by_the_actor(offline):
    def score_s(when):
        config = offline("dpo", reference={"when": when}, train={"zero_stage": 1, "gradient_checkpointing": True})
        found = assess(config, ClusterShape(1, 8))
        assert found.memories.keys() == {"actor"}
        return estimate(config, found).score_s

    assert score_s("before") == 0
    assert score_s("during") > 2 * N * 128 * 1000 / (989.4e12 * SCORING_SHARE)


def test_decoding_takes_longer_with_adapters(make, adapted):
    def pace(config):
        cache = assess(config, ClusterShape(1, 8)).cache
        return engine_pace(config, SHAPE, cache, RATES)

    plain, separate, merged = map(pace, (make(), adapted(), adapted(weight_sync={"adapter": "merged"})))
    assert separate.fixed(1) - plain.fixed(1) == pytest.approx(28 * ADAPTED_LAYER_S + 2 * ALL / RATES.memory)
    assert merged.fixed(1) == plain.fixed(1)

    on_cpu = {"cluster": {"accelerator": "cpu"}}
    merged, separate = (pace(adapted(weight_sync={"adapter": how}, **on_cpu)) for how in ("merged", "separate"))
    assert separate.fixed(200) == pytest.approx(ADAPTED_ON_CPU * merged.fixed(200), rel=0.01)
    assert separate.context == pytest.approx(ADAPTED_ON_CPU * merged.context)


def text_of(config, *, gpus=8):
    lines = report(config, assess(config, ClusterShape(1, gpus)))
    return " ".join(line.strip() for line in lines)


def test_the_report_says_what_adapters_save(make, adapted):
    settings = {"algorithm": KL, "train": {"zero_stage": 1, "gradient_checkpointing": True}}
    text, here, there = text_of(adapted(**settings)), *(actor(build(**settings)).peak for build in (adapted, make))
    assert "sync: 0.08 GiB of adapters per publish, to 1 worker of 1 engine" in text
    assert (
        "adapters: rank 16, of 7 matrices of each layer: 40.4M of 7,656M parameters of the actor are trained (0.5%)"
    ) in text
    shares = f"actor {1 - here / there:.1%} ({here / GIB:.2f} in place of {there / GIB:.2f} GiB of a worker)"
    assert f"saves, compared with training all weights: {shares}; publish" in text
    assert "publish 99.5% (0.08 in place of 14.19 GiB); checkpoint 99.5% (0.45 in place of 85.11 GiB); the" in text
    assert " GiB of a worker), because the actor without adapters is the reference" in text


def test_the_report_of_merged_adapters_and_of_a_critic(adapted):
    text = text_of(
        adapted(
            adapter={"targets": ["q_proj"]},
            algorithm={"kind": "ppo", **KL},
            reference={"path": "Qwen/Qwen2.5-7B"},
            weight_sync={"adapter": "merged"},
        )
    )
    assert "GiB of merged matrices per publish" in text
    assert "rank 16, of 1 matrix of each layer" in text
    assert "; critic " in text
    assert "the actor without adapters is the reference" not in text


def test_the_report_of_adapters_that_learn_from_examples_has_no_publish(offline):
    text = text_of(offline("sft"))
    assert "checkpoint 99.5%" in text
    assert "publish" not in text


def test_a_refusal_says_that_adapters_change_what_is_learnt(make):
    config = make(train={"workers": 1, "zero_stage": 3, "gradient_checkpointing": True})
    found = assess(config, ClusterShape(1, 8))
    assert refusal(found, propose(config, found)).endswith(
        "  'model.adapter={kind: lora}' train.learning_rate=1e-05\n"
        "    (trains adapters in place of all weights, which changes what is learnt)"
    )


def test_the_search_keeps_adapters_and_knows_that_zero_3_alone_is_not_the_smallest(offline):
    config = offline("dpo", train={"zero_stage": 0, "micro_batch_tokens": 2000, "gradient_checkpointing": True})
    found = search(config, ClusterShape(1, 1, GPUS["4090-24gb"]), ASSUMED)
    (best,) = found.on_policy
    assert best.config.model.adapter == config.model.adapter
    assert best.config.train.zero_stage == 1


def test_the_search_of_a_large_model_shards_its_base(adapted):
    config = adapted(train={"workers": 8, "zero_stage": 3}, rollout={"tensor_parallel": 8, "max_tokens": 512})
    config = changed(config, {"model.path": SEVENTY, "cluster.colocate": [["actor", "rollout"]]})
    best = search(config, ClusterShape(1, 8), ASSUMED).on_policy[0]
    assert best.config.train.zero_stage == 3
    assert best.config.model.adapter == config.model.adapter


IN_4_BITS = {"quantise": "nf4"}


def test_matrices_in_4_bits_take_a_quarter_of_bfloat16_and_embeddings_stay(adapted):
    """QLoRA: codes of 4 bits, scales of 8 bits for 64 weights, and a float32 for 256 of these."""
    assert pytest.approx(0.516, abs=2e-4) == NF4_BYTES
    held = actor(adapted(adapter=IN_4_BITS, train={"zero_stage": 1})).held
    assert held["weights"] == NF4_BYTES * MATRICES + 2 * (N - MATRICES + ALL)
    assert held["weights"] - 2 * ALL == pytest.approx(5.2 * GIB, rel=0.01)
    assert held["optimizer"] == 12 * ALL


def test_one_matrix_at_a_time_is_computed_from_its_4_bits(adapted):
    wide, small = (actor(adapted(adapter=adapter)).phases["backward"]["activations"] for adapter in ({}, IN_4_BITS))
    assert small - wide == 2 * 3584 * 18944


def test_members_of_an_ensemble_are_in_4_bits_each(offline):
    model = ADAPTED | {"adapter": LORA | IN_4_BITS}
    held = actor(offline("reward_model", model=model, algorithm={"kind": "reward_model", "members": 2})).held
    assert held["weights"] == 2 * (NF4_BYTES * MATRICES + 2 * (SCORER - MATRICES + ALL))


def test_weights_in_4_bits_are_read_and_written_by_every_product(adapted):
    def update_s(**adapter):
        config = adapted(adapter=adapter, train={"zero_stage": 1, "micro_batch_tokens": 2048})
        return estimate(config, assess(config, ClusterShape(1, 8)), Assumptions(rates=slow)).update_s

    slow = replace(RATES, training=1e30, launch_s=1e-30)
    micro = 64 / 1.0
    widened = 3 * micro * MATRICES * (NF4_BYTES + 2) / RATES.memory
    assert update_s(**IN_4_BITS) - update_s() == pytest.approx(widened, rel=0.01)


def test_the_report_says_what_is_in_4_bits(adapted):
    text = text_of(adapted(adapter=IN_4_BITS))
    assert "parameters of the actor are trained (0.5%), over 6,525M weights in 4 bits" in text


def test_the_search_does_not_shard_weights_in_4_bits(offline):
    config = offline("sft", model=ADAPTED | {"adapter": LORA | IN_4_BITS}, train={"zero_stage": 1})
    best = search(config, ClusterShape(1, 1, GPUS["a10-24gb"]), ASSUMED).on_policy[0]
    assert best.config.train.zero_stage in (1, 2)


def test_4_bits_are_proposed_where_adapters_alone_do_not_fit(offline):
    cluster = ClusterShape(1, 1, GPUS["t4-16gb"])
    full = offline("sft", model={"path": SEVEN, "dtype": "bfloat16"}, train={"zero_stage": 2})
    cluster = replace(cluster, gpu=replace(cluster.gpu, has_bfloat16=True))
    host = replace(cluster, host_bytes=40e9)
    *_, last = propose(full, assess(full, host))
    assert last.changes["model.adapter"] == {"kind": "lora", "quantise": "nf4"}
    assert last.remark == "trains adapters over weights that are rounded to 4 bits, which changes what is learnt"
    wide = offline("sft", train={"zero_stage": 1, "gradient_checkpointing": True})
    *_, last = propose(wide, assess(wide, host))
    assert last.changes == {"model.adapter.quantise": "nf4"}
    small = offline("sft", model=ADAPTED | {"adapter": LORA | IN_4_BITS}, train={"zero_stage": 1})
    tiny = replace(host, gpu=replace(host.gpu, memory_bytes=4 * GIB))
    assert propose(small, assess(small, tiny)) == []
