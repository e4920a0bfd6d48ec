import math

import pytest

from ray_rl.metrics.prometheus import GaugeSink, gauge_name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("step", "ray_rl_step"),
        ("policy/kl_old_k3", "ray_rl_policy_kl_old_k3"),
        ("time/rollout_s", "ray_rl_time_rollout_s"),
        ("reward/my_rewards:brevity_mean", "ray_rl_reward_my_rewards_brevity_mean"),
        ("reward/Bonne humeur-2_mean", "ray_rl_reward_Bonne_humeur_2_mean"),
    ],
)
def test_a_key_becomes_a_name_that_prometheus_allows(key, name):
    assert gauge_name(key) == name


def test_every_finite_value_of_a_step_is_a_gauge_and_nan_leaves_it_as_it_was():
    gauges = {}
    sink = GaugeSink(gauges.__setitem__)
    sink.write({"step": 1, "reward/mean": 0.25, "policy/loss": -0.5})
    sink.write({"step": 2, "reward/mean": math.nan, "policy/loss": math.inf})
    assert gauges == {"ray_rl_step": 2, "ray_rl_reward_mean": 0.25, "ray_rl_policy_loss": -0.5}
