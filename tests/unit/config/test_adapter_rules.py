import pytest

from ray_rl.config.adapter import Lora
from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.roles import base_reference, has_reference, roles_of
from ray_rl.config.rules.adapter import learning_rate_advice
from ray_rl.config.rules.resume import changes
from ray_rl.errors import ConfigError

LORA = "model.adapter={kind: lora}"


def test_the_scale_is_alpha_over_the_rank_or_over_its_root():
    assert Lora(rank=16, alpha=8).scale == 0.5
    assert Lora(rank=16, alpha=8, rs_lora=True).scale == 2.0
    assert Lora().scale == 1.0


def test_the_default_learning_rates_are_ten_times_as_high(load):
    assert load().train.learning_rate == 1e-6
    assert load(LORA).train.learning_rate == 1e-5
    assert load(LORA, "train.learning_rate=3e-6").train.learning_rate == 3e-6
    ppo = load(LORA, "algorithm.kind=ppo", "critic={workers: 2}")
    assert (ppo.critic.learning_rate, ppo.critic.workers) == (1e-4, 2)
    assert load("algorithm.kind=ppo").critic.learning_rate == 1e-5


def test_a_rate_of_full_fine_tuning_is_remarked(load):
    assert list(learning_rate_advice(load(LORA))) == []
    assert list(learning_rate_advice(load("train.learning_rate=1e-6"))) == []
    assert list(learning_rate_advice(load(LORA, "train.learning_rate=2e-6", "algorithm.kind=ppo"))) == [
        "train.learning_rate=2e-06 looks like one of full fine-tuning (default 1e-06); adapters learn with about 10 "
        "times as much, 1e-05"
    ]


def test_what_is_written_can_be_loaded(load, write):
    config = load("model.adapter={rank: 4, targets: [q_proj]}")
    assert load_config(write(dump_config(config), "again.yaml")) == config


def test_frozen_layers_and_adapters_exclude_each_other(refused):
    assert refused(LORA, "train.frozen_layers=2") == (
        "train.frozen_layers=2: with model.adapter all weights of the model are frozen, and each layer has adapters; "
        "remove it"
    )


def test_weights_in_4_bits_are_not_sharded(refused, passes):
    quantised = "model.adapter={quantise: nf4}"
    passes(quantised, "train.zero_stage=2")
    assert refused(quantised, "train.zero_stage=3") == (
        "train.zero_stage=3: it would cut the blocks in which model.adapter.quantise=nf4 stores weights; set "
        "train.zero_stage to 0, 1 or 2"
    )


def test_dropout_would_change_what_is_sampled(refused):
    assert refused("model.adapter={dropout: 0.1}") == (
        "model.adapter.dropout=0.1: engines sample without dropout, so that the trainer's log-probabilities would be "
        "those of others; set model.adapter.dropout=0"
    )


def test_adapters_belong_to_matrices_that_the_layers_have(load, refused):
    load("model.adapter={targets: [q_proj, down_proj]}")
    assert refused("model.adapter={targets: [q_proj, qkv, lm_head]}") == (
        "model.adapter.targets=['q_proj', 'qkv', 'lm_head']: no matrix in the layers of smollm2-135m-instruct is named "
        "qkv or lm_head; set it to all-linear, or to some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
        "down_proj"
    )


def test_there_is_nothing_to_publish_separately_without_adapters(refused):
    assert refused("weight_sync.adapter=separate") == (
        "weight_sync.adapter=separate: all weights are trained, so there are no adapters; remove it, or set "
        "model.adapter={kind: lora}"
    )


@pytest.mark.parametrize(
    ("overrides", "separate"),
    [
        ((LORA,), False),
        ((LORA, "cluster.accelerator=gpu"), True),
        ((LORA, "weight_sync.adapter=separate"), True),
        ((LORA, "cluster.accelerator=gpu", "weight_sync.adapter=merged"), False),
        (("cluster.accelerator=gpu",), False),
    ],
)
def test_adapters_are_published_separately_on_gpus_and_merged_on_cpu(load, overrides, separate):
    assert load(*overrides).publishes_adapters is separate


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (2, 8), (16, 16), (17, 32), (300, 320), (512, 512), (513, 512)])
def test_engines_have_room_for_the_least_size_that_holds_the_adapters(rank, size):
    assert Lora(rank=rank).engine_rank == size


def test_vllm_serves_adapters_up_to_a_rank(refused, passes):
    assert refused("model.adapter={rank: 513}", "weight_sync.adapter=separate") == (
        "model.adapter.rank=513: vLLM serves adapters up to rank 512; lower it, or set weight_sync.adapter=merged"
    )
    passes("model.adapter={rank: 512}", "weight_sync.adapter=separate")
    passes("model.adapter={rank: 513}")


def test_the_policy_without_its_adapters_is_the_reference(load, refused):
    penalty = "algorithm.kl.coefficient=0.1"
    plain, adapted, other = load(penalty), load(penalty, LORA), load(penalty, LORA, "reference={path: owner/other}")
    assert [base_reference(each) is not None for each in (plain, adapted, other, load(LORA))] == [0, 1, 0, 0]
    assert ["reference" in [role.name for role in roles_of(each)] for each in (plain, adapted, other)] == [1, 0, 1]
    assert [has_reference(each) for each in (plain, adapted, other, load(LORA))] == [1, 1, 1, 0]
    assert refused(penalty, LORA, "reference={workers: 2}") == (
        "reference.workers=2: with model.adapter the reference is the policy without its adapters, in the actor's "
        "workers; remove it"
    )


def test_adapters_alone_can_be_exported(load, refused):
    assert "checkpoint.export_adapter=peft: all weights are trained" in refused("checkpoint.export_adapter=peft")
    assert load(LORA, "checkpoint.export_adapter=peft").exports_adapters
    assert not load(LORA).exports_adapters


def test_vllm_gets_the_least_rank_that_holds_the_adapters():
    assert [Lora(rank=rank).engine_rank for rank in (1, 2, 8, 32, 33, 320, 512)] == [1, 8, 8, 32, 64, 320, 512]


def test_a_resumed_run_keeps_its_adapters(load):
    import yaml

    before = yaml.safe_load(dump_config(load(LORA)))
    assert changes(before, load(LORA)) == []
    for other in ("model.adapter={rank: 8}", "model.adapter=null"):
        with pytest.raises(ConfigError, match="the checkpoint has those weights, and no others; keep that"):
            changes(before, load(other))
