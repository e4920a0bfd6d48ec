import pytest

from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.throughput import estimate
from tests.unit.planner.conftest import REWARD

N = 7_615_616_512
PPO = {
    "algorithm": {"kind": "ppo", "prompts_per_step": 64, "update_epochs": 1},
    "train": {"workers": 4, "zero_stage": 3, "gradient_checkpointing": True},
    "critic": {"workers": 4, "zero_stage": 3, "gradient_checkpointing": True},
    "rewards": [{"kind": "model", "paths": [REWARD]}],
}


@pytest.fixture
def timed(make):
    def of(**sections):
        config = make(**sections)
        return estimate(config, assess(config, ClusterShape(4, 8)))

    return of


def test_an_update_takes_6_operations_a_parameter_and_token_and_8_with_checkpointing(timed):
    settings = {"workers": 4, "zero_stage": 3}
    plain, checkpointing = (timed(train=settings | {"gradient_checkpointing": on}) for on in (False, True))
    assert plain.tokens == 64 * 2048
    assert plain.update_s == pytest.approx(6 * N * plain.tokens / (4 * 989.4e12 * 0.35))
    assert checkpointing.update_s == pytest.approx(plain.update_s * 8 / 6)


def test_a_publish_sends_every_parameter_once(timed):
    assert timed(train={"workers": 4}).sync_bytes == 2 * N


def test_scores_are_those_of_the_slowest_role_and_none_without_one(timed):
    assert timed(train={"workers": 4}).score_s == 0
    judged = timed(**PPO)
    slower = timed(**PPO | {"rewards": [{"kind": "model", "paths": [REWARD] * 4}]})
    faster = timed(**PPO | {"rewards": [{"kind": "model", "paths": [REWARD] * 4, "workers": 4}]})
    assert slower.score_s == pytest.approx(4 * 2 * 7_504_928_768 * judged.tokens / (989.4e12 * 0.45))
    assert judged.score_s == faster.score_s == pytest.approx(2 * N * judged.tokens / (989.4e12 * 0.45))


def test_a_reference_takes_as_long_as_its_own_model_is_large(timed):
    kl = {"algorithm": {"prompts_per_step": 64, "kl": {"coefficient": 0.1}}}
    same, small = (timed(**kl, reference={"path": path}) for path in (None, "Qwen/Qwen2.5-3B"))
    assert small.score_s == pytest.approx(same.score_s * 3_085_938_688 / N)


def test_actor_and_critic_learn_at_the_same_time(timed):
    both = timed(**PPO)
    fewer = timed(**PPO | {"critic": {"workers": 2, "zero_stage": 3, "gradient_checkpointing": True}})
    assert fewer.update_s > both.update_s
    assert both.step_s == both.rollout_s + both.score_s + both.update_s + both.sync_s


def test_decoding_comes_in_waves_of_what_an_engine_runs_at_once(timed):
    once, twice = (timed(rollout={"max_tokens": 1536, "max_sequences": n}).rollout_s for n in (64, 32))
    assert once < twice < 2 * once
