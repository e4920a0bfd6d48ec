import pytest

from ray_rl.planner.advice import changed, propose
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import GPUS, ClusterShape
from ray_rl.sizes import GIB
from tests.unit.planner.conftest import REWARD, SEVENTY

CHECKPOINTING = {"gradient_checkpointing": True}
ADAPTERS = "'model.adapter={kind: lora}' train.learning_rate=1e-05"


@pytest.fixture
def advice(make):
    """The proposals as text, each of which was found to fit."""

    def of(*, nodes=1, gpu="h100-80gb", gpus_per_node=8, host_gib=None, **sections):
        config = make(**sections)
        host_bytes = None if host_gib is None else host_gib * GIB
        cluster = ClusterShape(nodes, gpus_per_node, GPUS[gpu], host_bytes)
        assessment = assess(config, cluster)
        assert not assessment.fits
        proposals = propose(config, assessment)
        for proposal in proposals:
            larger = ClusterShape(proposal.nodes, gpus_per_node, GPUS[gpu], host_bytes)
            assert assess(changed(config, proposal.changes), larger).fits
        return [" ".join(proposal.words) for proposal in proposals]

    return of


def test_what_costs_least_time_comes_first(advice):
    assert (
        advice(train={"workers": 4, "zero_stage": 2, "micro_batch_tokens": 16384})[0]
        == "train.gradient_checkpointing=true"
    )


def test_the_next_stage_is_proposed_where_checkpointing_is_on(advice):
    assert advice(train={"workers": 4, "zero_stage": 1, **CHECKPOINTING})[0] == "train.zero_stage=2"


def test_more_workers_are_a_second_way(advice):
    assert advice(train={"workers": 1, "zero_stage": 3, **CHECKPOINTING}) == [
        "train.offload.optimizer=true",
        "train.workers=2",
        ADAPTERS,
    ]


def test_smaller_micro_batches_and_chunks_are_halved_as_far_as_needed(advice):
    settings = {"workers": 4, "zero_stage": 3, "micro_batch_tokens": 65536, **CHECKPOINTING}
    assert advice(train=settings)[0] == "train.micro_batch_tokens=32768"
    wide = {"workers": 5, "zero_stage": 3, "logit_chunk_tokens": 200_000, "micro_batch_tokens": 2048, **CHECKPOINTING}
    assert advice(train=wide | {"micro_batch_tokens": 120_000})[0].startswith("train.micro_batch_tokens=")


def test_too_few_gpus_are_more_nodes_or_smaller_roles(advice):
    assert advice(
        train={"workers": 12, "zero_stage": 3, **CHECKPOINTING}, rollout={"engines": 4, "max_tokens": 512}
    ) == [
        "cluster.nodes=2",
        "'cluster.colocate=[[actor,rollout]]' train.workers=8 rollout.engines=8",
        "train.workers=6 rollout.engines=2",
    ]


def test_roles_of_equal_size_may_share_gpus(advice):
    proposals = advice(
        algorithm={"kind": "ppo"},
        train={"workers": 3, "zero_stage": 3, **CHECKPOINTING},
        critic={"workers": 3, "zero_stage": 3, **CHECKPOINTING},
        reference={"workers": 3, "zero_stage": 3},
        rewards=[{"kind": "model", "paths": [REWARD], "workers": 3}],
    )
    assert "'cluster.colocate=[[actor,reference],[critic,reward]]'" in proposals


def test_the_frozen_models_and_the_engine_have_remedies_too(advice):
    large = {"workers": 1, "zero_stage": 0}
    (first, *_) = advice(
        nodes=4,
        model={"path": SEVENTY},
        algorithm={"kl": {"coefficient": 0.1}},
        train={"workers": 24, "zero_stage": 3, **CHECKPOINTING},
        reference=large,
        rollout={"engines": 4, "tensor_parallel": 1, "max_tokens": 1536},
    )
    assert first == "reference.zero_stage=3 reference.offload=true rollout.tensor_parallel=2 rollout.engines=2"


def test_reward_models_are_spread_over_more_workers(advice):
    (first, *_) = advice(
        nodes=2,
        gpu="a100-40gb",
        train={"workers": 8, "zero_stage": 3, **CHECKPOINTING},
        rewards=[{"kind": "model", "paths": [REWARD] * 3}],
    )
    assert first == "rewards.0.workers=3"


def test_more_workers_come_with_more_nodes_where_these_are_needed(advice):
    large = {"workers": 7, "zero_stage": 3, **CHECKPOINTING}
    proposals = advice(model={"path": "Qwen/Qwen2.5-32B"}, train=large)
    assert proposals == ["train.offload.optimizer=true", "train.workers=14 cluster.nodes=2", ADAPTERS]


def test_an_engine_alone_is_not_grown_by_workers(advice):
    wide = {"workers": 8, "zero_stage": 3, "offload": {"optimizer": True}, **CHECKPOINTING}
    assert advice(nodes=2, model={"path": SEVENTY}, train=wide) == ["rollout.tensor_parallel=2"]


def test_a_model_that_is_too_large_for_all_there_is_has_no_remedy(advice):
    tiny = {"model": {"path": SEVENTY}, "gpu": "l4-24gb", "rollout": {"max_tokens": 60_000}}
    assert advice(**tiny, train={"workers": 1, "zero_stage": 3}) == []


def test_roles_shrink_further_where_an_engine_cannot(advice):
    proposals = advice(
        train={"workers": 12, "zero_stage": 3, **CHECKPOINTING}, rollout={"tensor_parallel": 4, "max_tokens": 512}
    )
    together = "'cluster.colocate=[[actor,rollout]]' train.workers=8 rollout.engines=2"
    assert proposals == ["cluster.nodes=2", together, "train.workers=4 rollout.engines=1"]


def test_too_few_gpus_that_are_too_small_have_no_remedy(advice):
    settings = {"model": {"path": SEVENTY}, "gpu": "l4-24gb", "rollout": {"max_tokens": 60_000}}
    assert advice(**settings, train={"workers": 12, "zero_stage": 3}, reference=None) == []


SMALL = {"gpu": "4090-24gb", "gpus_per_node": 2}
SEVEN = {"train": {"workers": 1, "zero_stage": 2, **CHECKPOINTING}, "rollout": {"max_tokens": 512}}


def test_what_is_offloaded_must_have_room_on_the_node(advice):
    """7B on two GPUs of 24 GB: 16 + 2 bytes a parameter and the weights lie on the host, 142 GiB of its memory."""
    offloaded = "train.zero_stage=3 train.offload.optimizer=true train.offload.parameters=true"
    assert advice(**SMALL, **SEVEN)[0] == offloaded
    assert advice(**SMALL, **SEVEN, host_gib=160)[0] == offloaded
    assert advice(**SMALL, **SEVEN, host_gib=128) == [ADAPTERS]


def test_memory_of_the_node_that_was_not_checked_is_said_with_the_proposal(make):
    config = make(**SEVEN)
    (first, *_) = propose(config, assess(config, ClusterShape(1, 2, GPUS["4090-24gb"])))
    # Optimizer 12, gradient 4, staging 2 and weights 2 bytes a parameter; 2 GiB for each of three processes.
    assert first.host_bytes == pytest.approx(20 * 7_615_616_512 + 6 * GIB)
    config = make(train={"workers": 4, "zero_stage": 1, **CHECKPOINTING})
    (first, *_) = propose(config, assess(config, ClusterShape(1, 8)))
    assert first.host_bytes is None


def test_offloading_is_turned_off_where_the_node_has_no_room_and_the_gpus_do(advice):
    offload = {"zero_stage": 2, "offload": {"optimizer": True}, **CHECKPOINTING}
    assert advice(host_gib=110, train={"workers": 6, **offload}) == [
        "train.offload.optimizer=false",
        "train.workers=12 cluster.nodes=2 train.zero_stage=3",
        ADAPTERS,
    ]
    four = advice(
        host_gib=100,
        algorithm={"kind": "ppo"},
        train={"workers": 2, **offload, "zero_stage": 3},
        critic={"workers": 2, **offload, "zero_stage": 3},
        reference={"zero_stage": 3, "offload": True},
        rewards=[{"kind": "number"}],
    )
    assert "train.offload.optimizer=false" in four[0]


def test_a_gpu_without_bfloat16_takes_float32(advice):
    small = {"model": {"path": "Qwen/Qwen2.5-0.5B"}, "train": {"workers": 2, "zero_stage": 2, **CHECKPOINTING}}
    assert advice(gpu="t4-16gb", **small) == ["model.dtype=float32"]
    assert advice(gpu="v100-32gb", **small) == ["model.dtype=float32"]


ONE = {"gpus_per_node": 1, "algorithm": {"kind": "grpo", "prompts_per_step": 32}}
ALL = "'cluster.colocate=[[actor,reference,rollout]]'"


def test_one_gpu_is_enough_if_all_roles_take_turns_on_it(advice):
    small = {"model": {"path": "Qwen/Qwen2.5-1.5B"}, "rollout": {"max_tokens": 1024}}
    assert advice(gpu="4090-24gb", **ONE, **small)[1] == (
        f"{ALL} train.gradient_checkpointing=true train.zero_stage=3 train.offload.optimizer=true "
        "rollout.gpu_memory_fraction=0.82"
    )
    assert advice(**ONE)[1] == f"{ALL} train.zero_stage=3 train.offload.optimizer=true"


def test_eight_gpus_are_enough_for_eight_workers_and_engines_that_take_turns(advice):
    found = advice(algorithm={"kind": "grpo"}, train={"workers": 8, **CHECKPOINTING}, reference={"workers": 8})
    assert found[1] == f"{ALL} rollout.engines=8 train.zero_stage=2"


def test_engines_that_take_turns_are_no_wider_than_the_gpus(advice):
    found = advice(gpus_per_node=3, train={"workers": 4, **CHECKPOINTING}, rollout={"tensor_parallel": 2})
    assert found[1].endswith("train.workers=3 rollout.engines=3 rollout.tensor_parallel=1 train.zero_stage=2")


def test_roles_that_take_turns_have_remedies_by_phase(advice):
    shared = {"cluster": {"colocate": [["actor", "rollout"]]}, "rollout": {"gpu_memory_fraction": 0.95}}
    settings = {"workers": 4, "zero_stage": 2, **CHECKPOINTING}
    assert advice(**shared | {"rollout": {"engines": 4, "gpu_memory_fraction": 0.95}}, train=settings) == [
        "rollout.gpu_memory_fraction=0.93"
    ]
    four = {"engines": 2, "tensor_parallel": 2, "max_tokens": 1536}
    assert advice(**shared | {"rollout": four}, train=settings | {"zero_stage": 1}) == [
        "train.zero_stage=2",
        "train.workers=8 rollout.engines=4 train.zero_stage=2",
        ADAPTERS,
    ]


def test_roles_that_take_turns_shrink_together(advice):
    shared = {"cluster": {"colocate": [["actor", "rollout"]]}, "rollout": {"engines": 8, "tensor_parallel": 2}}
    assert advice(train={"workers": 16, "zero_stage": 3, **CHECKPOINTING}, **shared) == [
        "cluster.nodes=2",
        "train.workers=8 rollout.engines=4",
    ]


def test_adapters_come_with_their_learning_rates_and_without_workers_of_a_reference(make):
    offload = {"workers": 2, "zero_stage": 3, **CHECKPOINTING}
    config = make(
        algorithm={"kind": "ppo", "kl": {"coefficient": 0.1}},
        train=offload | {"frozen_layers": 4},
        critic=offload,
        reference={"workers": 2, "zero_stage": 3, "offload": True},
        rollout={"max_tokens": 1536},
        cluster={"colocate": [["actor", "critic"]]},
    )
    *_, last = propose(config, assess(config, ClusterShape(1, 8)))
    assert last.changes == {
        "model.adapter": {"kind": "lora"},
        "train.frozen_layers": 0,
        "train.learning_rate": 1e-5,
        "critic.learning_rate": 1e-4,
        "reference.workers": 1,
        "reference.zero_stage": 0,
        "reference.offload": False,
    }
    assert last.remark == "trains adapters in place of all weights, which changes what is learnt"


def test_a_frozen_model_of_its_own_keeps_its_workers_beside_adapters(make):
    alone = {"path": "Qwen/Qwen2.5-7B", "workers": 1}
    config = make(algorithm={"kl": {"coefficient": 0.1}}, train={"workers": 1, **CHECKPOINTING}, reference=alone)
    *_, last = propose(config, assess(config, ClusterShape(1, 8)))
    assert last.changes == {"model.adapter": {"kind": "lora"}, "train.learning_rate": 1e-5}


def test_adapters_are_not_proposed_twice(advice):
    smallest = {"kind": "lora", "quantise": "nf4"}
    adapted = {"model": {"path": SEVENTY, "adapter": smallest}, "train": {"micro_batch_tokens": 32768}}
    assert not any("model.adapter" in proposal for proposal in advice(**adapted, rollout={"tensor_parallel": 4}))


def test_adapters_may_also_need_all_roles_to_take_turns(advice):
    seventy = {"model": {"path": SEVENTY}, "rollout": {"engines": 2, "tensor_parallel": 8, "max_tokens": 512}}
    found = advice(**seventy, host_gib=400, train={"workers": 16, "zero_stage": 3, **CHECKPOINTING})
    assert found[-1] == f"{ADAPTERS} 'cluster.colocate=[[actor,rollout]]' train.workers=8 rollout.engines=1"
