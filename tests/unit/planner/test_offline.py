"""Plans of algorithms that learn from examples: no engines, no publish, pairs that stay whole."""

import pytest

from ray_rl.config import RunConfig
from ray_rl.config.rules.algorithm import algorithm_rules, training_rules
from ray_rl.planner.advice import changed, propose
from ray_rl.planner.arithmetic import Share, step_arithmetic
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import GPUS, ClusterShape
from ray_rl.planner.rates import SCORING_SHARE, TRAINING_SHARE
from ray_rl.planner.report import refusal, report
from ray_rl.planner.throughput import estimate
from tests.unit.planner.conftest import SEVEN

N = 7_615_616_512
SCORER = N - 152_064 * 3584 + 3584
ZERO_3 = {"workers": 8, "zero_stage": 3, "gradient_checkpointing": True}


@pytest.fixture
def make():
    def make_config(kind="dpo", **sections):
        return RunConfig.model_validate(
            {
                "run": {"name": "test", "steps": 10},
                "model": {"path": SEVEN, "dtype": "bfloat16"},
                "data": {"kind": "jsonl", "path": "examples.jsonl", "max_tokens": 1000},
                "algorithm": {"kind": kind},
                "train": ZERO_3,
                "cluster": {"address": "auto"},
            }
            | sections
        )

    return make_config


@pytest.fixture
def assessed(make):
    def of(kind="dpo", *, nodes=1, **sections):
        config = make(kind, **sections)
        return config, assess(config, ClusterShape(nodes, 8))

    return of


def test_a_step_counts_the_two_sequences_of_a_pair_which_stay_together(make):
    step = step_arithmetic(make(train=ZERO_3 | {"workers": 3, "micro_batch_tokens": 5000}))
    assert (step.prompts, step.group_size, step.sequences, step.per_update) == (64, 2, 128, 128)
    assert (step.per_engine, step.optimizer_steps, step.longest) == (0, 1, 1000)
    # 22 pairs a worker at most, and two pairs of 2000 tokens in a micro-batch.
    assert step.shares == {"actor": Share(sequences=44, micro_batches=11, rows=4)}


def test_a_demonstration_is_one_sequence(make):
    step = step_arithmetic(make("sft", train=ZERO_3 | {"micro_batch_tokens": 5000}))
    assert step.shares == {"actor": Share(sequences=16, micro_batches=4, rows=5)}


def test_a_model_that_scores_reads_one_token_more(make):
    longest = {kind: step_arithmetic(make(kind)).longest for kind in ("dpo", "reward_model", "process_reward_model")}
    assert longest == {"dpo": 1000, "reward_model": 1001, "process_reward_model": 1001}


def test_there_is_an_actor_alone_without_engine_and_publish(assessed):
    _, found = assessed()
    assert list(found.memories) == ["actor"]
    assert found.cache is None
    assert set(found.memories["actor"].phases) == {"backward", "step"}
    assert found.layout.workers == {"actor": 8}
    assert found.fits


def test_a_live_reference_has_workers_and_a_forward_pass(assessed):
    _, found = assessed(reference={"when": "during", "workers": 8, "zero_stage": 3}, nodes=2)
    assert list(found.memories) == ["actor", "reference"]
    assert found.memories["reference"].held["weights"] == 2 * N / 8


def test_a_model_that_scores_has_one_number_in_place_of_the_vocabulary_and_no_logits(assessed):
    (_, scorer), (_, writer) = assessed("reward_model"), assessed("dpo")
    assert scorer.memories["actor"].held["weights"] == pytest.approx(2 * SCORER / 8)
    assert "logits" not in scorer.memories["actor"].terms()
    assert "logits" in writer.memories["actor"].terms()


def test_an_ensemble_trains_its_members_together(assessed):
    one, three = (assessed(algorithm={"kind": "reward_model", "members": members}) for members in (1, 3))
    memories = [found.memories["actor"].terms() for _, found in (one, three)]
    for term in ("weights", "optimizer", "gradients", "activations"):
        assert memories[1][term] == pytest.approx(3 * memories[0][term])
    assert 2.5 * estimate(*one).update_s < estimate(*three).update_s < 3.1 * estimate(*one).update_s


def test_a_micro_batch_holds_a_pair_that_exceeds_its_budget(assessed):
    small = {"train": ZERO_3 | {"micro_batch_tokens": 16}}
    activations = [assessed(kind, **small)[1].memories["actor"].terms()["activations"] for kind in ("dpo", "sft")]
    assert activations[0] == pytest.approx(2 * activations[1])


def test_the_time_is_that_of_the_update_and_of_a_live_reference(assessed):
    config, found = assessed("sft")
    alone = estimate(config, found)
    assert alone.tokens == 128 * 1000
    assert alone.step_s == alone.update_s
    assert (alone.rollout_s, alone.sync_s, alone.sync_bytes, alone.busy) == (0, 0, 0, 1)
    assert alone.update_s > 8 * N * alone.tokens / (8 * 989.4e12 * TRAINING_SHARE)
    live = estimate(*assessed(reference={"when": "during", "workers": 4, "zero_stage": 3}, nodes=2))
    assert live.score_s > 2 * N * live.tokens / (4 * 989.4e12 * SCORING_SHARE)
    assert live.step_s == live.score_s + live.update_s
    scorer = estimate(*assessed("reward_model"))
    assert scorer.update_s > 8 * SCORER * 256 * 1000 / (8 * 989.4e12 * TRAINING_SHARE)


def test_the_report_names_pairs_and_the_time_of_the_run(assessed):
    config, found = assessed()
    text = "\n".join(report(config, found))
    assert "step: 128 sequences of at most 1000 tokens (64 pairs)\nupdate: 1 optimizer step of 128 sequences\n" in text
    assert "  actor: at most 16 sequences per worker, in at most 4 micro-batches (4 sequences of full length)" in text
    assert "time of a step, if every sequence has full length: " in text
    assert " for 10 steps, to a factor of two" in text
    for absent in ("KV cache", "sync", "completion", "rollout"):
        assert absent not in text


def test_a_length_in_epochs_has_a_time_for_every_100000_examples(assessed):
    config, found = assessed("sft", run={"name": "test"})
    hours = estimate(config, found).step_s * 100_000 / 128 / 3600
    last = f"time of an epoch: {hours:.1f} h for every 100,000 examples, to a factor of two"
    assert last in "\n".join(report(config, found))


def test_the_report_of_a_live_reference_has_its_time(assessed):
    config, found = assessed(reference={"when": "during", "workers": 8, "zero_stage": 3}, nodes=2)
    assert any(" s: reference " in line and ", update " in line for line in report(config, found))


def test_what_does_not_fit_is_refused_with_changes_that_help(make):
    config = make(train={"workers": 2, "zero_stage": 1, "micro_batch_tokens": 16_000}, reference={"when": "during"})
    found = assess(config, ClusterShape(1, 8))
    assert not found.fits
    proposals = propose(config, found)
    assert proposals
    for proposal in proposals:
        assert not any(key.startswith(("rollout", "data")) for key in proposal.changes)


@pytest.fixture
def advice(make):
    """The proposals for a cluster of GPUs with 80 GB, each of which passes the rules and fits."""

    def of(*, gpus, **sections):
        config, cluster = make(**sections), ClusterShape(1, gpus)
        proposals = propose(config, assess(config, cluster))
        for proposal in proposals:
            better = changed(config, proposal.changes)
            assert not [*algorithm_rules(better), *training_rules(better)]
        return [" ".join(proposal.words) for proposal in proposals]

    return of


def test_a_live_reference_for_which_no_gpus_are_left_is_computed_before(advice):
    assert advice(gpus=8, reference={"when": "during"})[0] == "reference.when=before"
    assert advice(gpus=8, reference={"when": "during", "workers": 4, "zero_stage": 3, "offload": True})[0] == (
        "reference.when=before reference.workers=1 reference.zero_stage=0 reference.offload=false"
    )


def test_a_live_reference_whose_memory_is_missing_on_shared_gpus_is_computed_before(advice):
    sections = {
        "train": ZERO_3 | {"workers": 2},
        "reference": {"when": "during", "workers": 2},
        "cluster": {"address": "auto", "colocate": [["actor", "reference"]]},
    }
    assert advice(gpus=2, **sections)[0] == "reference.when=before reference.workers=1"


def test_another_model_than_the_policy_stays_a_live_reference(advice):
    proposals = advice(gpus=8, reference={"when": "during", "path": "Qwen/Qwen2.5-7B"})
    assert proposals
    assert not any("reference.when" in proposal for proposal in proposals)


def test_no_smaller_micro_batch_than_a_pair_is_proposed(make):
    config = make(train=ZERO_3 | {"micro_batch_tokens": 64_000})
    first, *_ = propose(config, assess(config, ClusterShape(1, 8, GPUS["4090-24gb"])))
    assert first.changes == {"train.micro_batch_tokens": 2000, "train.offload.optimizer": True}


def test_no_change_helps_a_model_that_is_far_too_large(make):
    config = make("sft", model={"path": "meta-llama/Llama-3.3-70B-Instruct"}, train={"workers": 1, "zero_stage": 3})
    cluster = ClusterShape(1, 1, GPUS["4090-24gb"], host_bytes=1.0)
    found = assess(config, cluster)
    assert propose(config, found) == []
    assert "fewer tokens (data.max_tokens)" in refusal(found, [])


def test_adapters_may_also_need_fewer_workers(make):
    seventy = {"model": {"path": "meta-llama/Llama-3.3-70B-Instruct"}, "train": ZERO_3 | {"workers": 16}}
    config = make("sft", **seventy)
    *_, last = propose(config, assess(config, ClusterShape(1, 8, host_bytes=100e9)))
    ten_times = 10 * config.train.learning_rate
    assert last.changes == {
        "model.adapter": {"kind": "lora"},
        "train.learning_rate": pytest.approx(ten_times),
        "train.workers": 8,
    }
