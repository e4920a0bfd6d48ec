from dataclasses import replace

import pytest

from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import GPUS, ClusterShape
from ray_rl.planner.lengths import parse_lengths
from ray_rl.planner.rates import SCORING_SHARE, TRAINING_SHARE, Rates
from ray_rl.planner.sampling import Sampling
from ray_rl.planner.throughput import Assumptions, estimate, overlapped_s
from tests.unit.planner.conftest import REWARD, SEVENTY

N = 7_615_616_512
PPO = {
    "algorithm": {"kind": "ppo", "prompts_per_step": 64, "update_epochs": 1},
    "train": {"workers": 4, "zero_stage": 3, "gradient_checkpointing": True},
    "critic": {"workers": 4, "zero_stage": 3, "gradient_checkpointing": True},
    "rewards": [{"kind": "model", "paths": [REWARD]}],
}
RATES = Rates.of(GPUS["h100-80gb"].speed, "bfloat16")


AT_ONCE = {"max_tokens": 1536, "score_as_finished": False}


@pytest.fixture
def timed(make):
    def of(*, lengths=None, rates=None, nodes=4, **sections):
        config = make(**sections)
        drawn = parse_lengths(lengths, maximum=config.rollout.max_tokens)
        return estimate(config, assess(config, ClusterShape(nodes, 8)), Assumptions(drawn, rates))

    return of


def test_a_step_is_the_sum_of_its_phases(timed):
    times = timed(train={"workers": 4, "zero_stage": 3})
    assert times.tokens == 64 * 2048
    assert times.step_s == pytest.approx(times.rollout_s + times.score_s + times.update_s + times.sync_s)
    assert times.train_s == pytest.approx(times.step_s - times.rollout_s)
    assert times.run_s(10) == 10 * times.step_s
    assert times.update_s > 6 * N * times.tokens / (4 * 989.4e12 * TRAINING_SHARE)


def test_a_publish_sends_every_parameter_once(timed):
    assert timed(train={"workers": 4}).sync_bytes == 2 * N


def test_a_pass_before_the_update_is_needed_for_two_optimizer_steps(timed):
    assert timed(train={"workers": 4}).score_s == 0
    twice = timed(train={"workers": 4}, algorithm={"minibatches": 2, "old_policy": "trainer"}, rollout=AT_ONCE)
    assert twice.score_s > 2 * N * twice.tokens / (4 * 989.4e12 * SCORING_SHARE)


def test_groups_that_finish_are_scored_while_others_are_sampled(timed):
    more = {"train": {"workers": 4}, "algorithm": {"minibatches": 2, "old_policy": "trainer"}}
    at_once, begun = timed(**more, rollout=AT_ONCE), timed(**more)
    assert begun.rollout_s == at_once.rollout_s
    assert begun.busy_s == at_once.busy_s
    # Scores take less time than the rollouts; those of the last of eight groups remain.
    assert begun.score_s == pytest.approx(at_once.score_s / 8)
    assert at_once.step_s - begun.step_s == pytest.approx(at_once.score_s - begun.score_s)


def test_only_what_is_frozen_and_alone_is_scored_ahead_of_a_step_that_overlaps(timed):
    ahead = {"max_tokens": 1536, "max_staleness": 1}
    alone = {"train": {"workers": 4}, "algorithm": {"kl": {"coefficient": 0.01}}}
    near = alone | {"cluster": {"colocate": [["actor", "reference"]]}, "reference": {"workers": 4}}
    assert timed(**alone, rollout=ahead).score_s < timed(**alone, rollout=ahead | AT_ONCE).score_s / 7
    assert timed(**near, rollout=ahead).score_s == timed(**near, rollout=ahead | AT_ONCE).score_s


def test_reward_models_score_while_others_are_sampled(timed):
    judged = timed(**PPO)
    slower = timed(**PPO | {"rewards": [{"kind": "model", "paths": [REWARD] * 16}]})
    assert judged.rollout_s == timed(**PPO | {"rewards": [{"kind": "number"}]}).rollout_s
    assert slower.rollout_s > 16 * 2 * 7_504_928_768 * judged.tokens / (989.4e12 * SCORING_SHARE)
    assert judged.score_s == slower.score_s


def test_a_reference_takes_as_long_as_its_own_model_is_large(timed):
    kl = {"algorithm": {"prompts_per_step": 64, "kl": {"coefficient": 0.1}}}
    same, small = (timed(**kl, reference={"path": path}) for path in (None, "Qwen/Qwen2.5-3B"))
    assert small.score_s == pytest.approx(same.score_s * 3_085_938_688 / N, rel=0.15)


def test_roles_that_share_gpus_take_turns(timed):
    kl = {"minibatches": 2, "old_policy": "trainer", "kl": {"coefficient": 0.1}}
    settings = {"algorithm": kl, "train": {"workers": 4, "zero_stage": 2}, "reference": {"workers": 4}}
    apart = timed(**settings)
    shared = timed(**settings, cluster={"address": "auto", "colocate": [["actor", "reference"]]})
    assert shared.score_s == pytest.approx(2 * apart.score_s)
    both = timed(**PPO)
    pair = timed(**PPO, cluster={"address": "auto", "colocate": [["actor", "critic"]]})
    assert pair.update_s == pytest.approx(2 * both.update_s, rel=0.1)
    assert pair.score_s == both.score_s


def test_actor_and_critic_with_gpus_of_their_own_learn_at_the_same_time(timed):
    both = timed(**PPO)
    fewer = timed(**PPO | {"critic": {"workers": 2, "zero_stage": 3, "gradient_checkpointing": True}})
    assert fewer.update_s > both.update_s


def test_the_tail_of_long_completions_is_in_the_time_of_the_rollouts(timed):
    settings = {"rollout": {"max_tokens": 16384, "engines": 4}, "algorithm": {"prompts_per_step": 128}}
    full = timed(**settings)
    half = timed(lengths="mean=8192", **settings)
    even = timed(lengths="mean=8192,sigma=0.1", **settings)
    assert even.rollout_s < half.rollout_s < full.rollout_s
    assert half.tokens == pytest.approx(even.tokens, rel=1e-2)
    assert half.update_s < 0.6 * full.update_s
    assert timed(lengths="mean=8192,prompt=100", **settings).tokens < half.tokens


def test_decoding_more_than_an_engine_holds_takes_longer(timed):
    once, twice = (timed(rollout={"max_tokens": 1536, "max_sequences": n}).rollout_s for n in (64, 32))
    assert once < twice < 2 * once


def test_a_step_ahead_hides_the_faster_side(timed):
    settings = {"train": {"workers": 4, "zero_stage": 3}, "algorithm": {"prompts_per_step": 256}}
    alone, ahead, further = (
        timed(**settings, rollout={"max_tokens": 1536, "engines": 2, "max_staleness": n}) for n in (0, 1, 2)
    )
    assert max(alone.rollout_s, alone.train_s) <= ahead.step_s < alone.step_s
    assert further.step_s <= ahead.step_s
    assert alone.busy < ahead.busy <= 1


def test_who_samples_ahead_waits_for_the_slower_side():
    fast = Sampling(rollout_s=60, steady_s=50, longest_s=40)
    assert overlapped_s(fast, 0, 100, 2, staleness=1) == 100
    slow = Sampling(rollout_s=60, steady_s=150, longest_s=40)
    assert overlapped_s(slow, 0, 100, 2, staleness=1) == 152
    assert overlapped_s(fast, 180, 100, 2, staleness=1) == 180
    long = Sampling(rollout_s=260, steady_s=50, longest_s=200)
    assert overlapped_s(long, 0, 100, 2, staleness=1) == 260
    assert overlapped_s(long, 0, 100, 2, staleness=2) == 130
    assert overlapped_s(replace(long, rollout_s=120), 0, 100, 2, staleness=1) == 150


def test_phases_of_engines_that_share_gpus_never_overlap(timed):
    settings = {
        "algorithm": {"kind": "grpo", "prompts_per_step": 64},
        "train": {"workers": 8, "zero_stage": 2, "gradient_checkpointing": True},
        "reference": {"workers": 8},
        "cluster": {"address": "auto", "colocate": [["actor", "reference", "rollout"]]},
    }
    light, deep = (
        timed(**settings, rollout={"engines": 8, "max_tokens": 1536, "sleep_level": level}) for level in (1, 2)
    )
    assert light.step_s == pytest.approx(light.rollout_s + light.train_s)
    assert light.turn_s - deep.turn_s == pytest.approx(2 * 2 * N / RATES.host)
    # Of the actor 2 bytes of weights, and 4 + 12 bytes an eighth; of the reference 2 bytes; there and back.
    assert deep.turn_s == pytest.approx(2 * (2 + 16 / 8 + 2) * N / RATES.host)
    assert light.busy == pytest.approx(1 - light.turn_s / light.step_s)


def test_a_reward_model_on_the_gpus_of_the_engines_adds_its_time(timed):
    shared = {"address": "auto", "colocate": [["actor", "reward", "rollout"]]}
    settings = {"train": {"workers": 8, "zero_stage": 3}, "rollout": {"engines": 8, "max_tokens": 1536}}
    judged = timed(**settings, cluster=shared, rewards=[{"kind": "model", "paths": [REWARD], "workers": 8}])
    alone = timed(**settings, cluster={"address": "auto", "colocate": [["actor", "rollout"]]})
    scored = 2 * 7_504_928_768 * judged.tokens / (8 * 989.4e12 * SCORING_SHARE)
    assert judged.rollout_s - alone.rollout_s == pytest.approx(scored, rel=0.5)


def test_a_publish_depends_on_where_the_engines_are(timed):
    large = {"model": {"path": SEVENTY}, "train": {"workers": 24, "zero_stage": 3, "gradient_checkpointing": True}}
    far = timed(**large, nodes=6, rollout={"engines": 2, "tensor_parallel": 4, "max_tokens": 512})
    size = 2 * 70_553_706_496
    assert far.sync_s > size / RATES.network + size / RATES.digest
    assert far.sync_s < 10
    near, split = (
        timed(train={"workers": workers, "zero_stage": 1}, rollout={"max_tokens": 512}) for workers in (7, 8)
    )
    assert split.sync_s - near.sync_s == pytest.approx(2 * N * (1 / RATES.network - 1 / RATES.link))
    gathered = timed(train={"workers": 7, "zero_stage": 3}, rollout={"max_tokens": 512})
    assert gathered.sync_s - near.sync_s == pytest.approx(2 * N * 6 / 7 / RATES.link)


def test_engines_of_several_gpus_pay_for_their_sums(timed):
    one, four = (timed(rollout={"tensor_parallel": n, "max_tokens": 1536}).rollout_s for n in (1, 4))
    assert one / 4 < four < one


def test_measured_rates_replace_the_data_sheet(timed):
    settings = {"train": {"workers": 4, "zero_stage": 1}}
    slow = timed(**settings, rates=replace(RATES, training=RATES.training / 10))
    assert slow.update_s > 9 * timed(**settings).update_s


def test_on_cpu_with_measured_rates_all_roles_share_the_machine(make):
    rates = Rates(training=1e11, scoring=1e11, decoding=1e11, memory=1e10, link=1e9, network=1e9, launch_s=1e-4)

    def update_s(workers):
        config = make(
            model={"path": "smollm2-135m-instruct", "dtype": "float32"},
            algorithm={"kind": "ppo", "prompts_per_step": 8},
            train={"workers": workers, "zero_stage": 1},
            cluster={"accelerator": "cpu"},
        )
        times = estimate(config, assess(config, ClusterShape.of(config)), Assumptions(rates=rates))
        assert times.busy <= 1
        return times.update_s

    assert update_s(1) > 2 * 6 * 134_515_008 * 8 * 2048 / 1e11
    assert update_s(2) == pytest.approx(update_s(1), rel=0.3)


def test_a_shared_prefix_is_computed_once_for_all_its_completions(timed):
    settings = {"data": {"kind": "addition", "max_prompt_tokens": 4096}, "rollout": {"max_tokens": 512}}
    each, once = (timed(**settings, train={"packing": packing}) for packing in ("packed", "shared_prefix"))
    assert once.tokens == each.tokens == 64 * 4608
    # 8 prompts of 4096 tokens instead of 64.
    assert once.update_s / each.update_s == pytest.approx((8 * 4096 + 64 * 512) / (64 * 4608), rel=0.15)
