import pytest

from ray_rl.planner.advice import changed
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.layouts import UNITS, Family, Layout, families, layouts

REWARDS = [{"kind": "model", "paths": ["Skywork/Skywork-Reward-V2-Llama-3.1-8B"]}]
PPO = {"algorithm": {"kind": "ppo"}, "rewards": REWARDS, "critic": {}}
TOGETHER, APART = (("actor", "rollout"),), (("actor",), ("rollout",))


def test_two_gpus_have_four_layouts(make):
    assert set(layouts(make(), ClusterShape(1, 2))) == {
        Layout(Family(TOGETHER, 1, 0), (2,)),
        Layout(Family(TOGETHER, 2, 0), (2,)),
        Layout(Family(APART, 1, 0), (1, 1)),
        Layout(Family(APART, 1, 1), (1, 1)),
    }


def test_two_steps_ahead_are_tried_only_if_batches_are_in_the_order_of_completion(make):
    def ahead(**rollout):
        return {family.staleness for family in families(make(rollout=rollout), ClusterShape(1, 2))}

    assert ahead() == {0, 1}
    assert ahead(order="completion") == {0, 1, 2}


def test_one_gpu_is_shared_by_all_roles(make):
    everything = ("actor", "critic", "reference", "reward", "rollout")
    assert list(layouts(make(**PPO), ClusterShape(1, 1))) == [Layout(Family((everything,), 1, 0), (1,))]


def test_roles_share_gpus_in_five_ways(make):
    found = {family.groups for family in families(make(**PPO), ClusterShape(1, 8))}
    assert found == {
        (("actor", "critic", "reference", "reward", "rollout"),),
        (("actor", "reference", "rollout"), ("critic", "reward")),
        (("actor", "rollout"), ("critic", "reward"), ("reference",)),
        (("actor", "critic", "reference", "reward"), ("rollout",)),
        (("actor", "reference"), ("critic", "reward"), ("rollout",)),
    }


@pytest.mark.parametrize(("nodes", "unit"), [(1, 1), (2, 1), (3, 2), (6, 4)])
def test_every_layout_takes_all_gpus_in_units_and_whole_engines(make, nodes, unit):
    for layout in layouts(make(**PPO), ClusterShape(nodes, 8)):
        assert sum(layout.gpus) == 8 * nodes
        assert 8 * nodes <= UNITS * unit
        for roles, gpus in zip(layout.family.groups, layout.gpus, strict=True):
            assert gpus > 0
            assert "actor" in roles or gpus % unit == 0
            assert "rollout" not in roles or gpus % layout.family.engine == 0


def test_a_run_has_the_layout_that_it_is_changed_to(make):
    apart = Layout(Family((("actor", "reference"), ("critic", "reward"), ("rollout",)), 2, 1), (8, 4, 4))
    config = make(**PPO)
    changes = apart.changes(config)
    assert changes == {
        "cluster.colocate": [["actor", "reference"], ["critic", "reward"]],
        "train.workers": 8,
        "critic.workers": 4,
        "reference.workers": 8,
        "rewards.0.workers": 4,
        "rollout.engines": 2,
        "rollout.tensor_parallel": 2,
        "rollout.max_staleness": 1,
        "rollout.sleep_level": 1,
    }
    assert changed(config, changes).rollout.engines == 2
    turns = Layout(Family(TOGETHER, 2, 0), (8,))
    assert "rollout.sleep_level" not in turns.changes(make())


def test_what_learns_from_examples_has_one_layout(make):
    config = make(algorithm={"kind": "sft", "batch_size": 8}, rewards=[], data={"kind": "jsonl", "path": "x.jsonl"})
    (only,) = layouts(config, ClusterShape(1, 8))
    assert only.changes(config) == {"cluster.colocate": [], "train.workers": 8}
