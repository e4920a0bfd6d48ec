import pytest

from ray_rl.config import gpus
from ray_rl.config.gpus import asked_gpus, role_groups, scores_as_finished, sharers_of_engines, visible_gpu_count

JUDGES = "rewards=[{kind: number}, {kind: model, paths: [owner/name], workers: 2}]"
FIVE_ROLES = ("algorithm={kind: ppo}", "critic={workers: 2}", JUDGES)


def test_the_asks_name_their_roles_and_keys(load):
    config = load("train.workers=2", "rollout.tensor_parallel=3", "algorithm.kl.coefficient=0.1")
    assert [str(ask) for ask in asked_gpus(config)] == [
        "actor 2 (train.workers)",
        "reference 1 (reference.workers)",
        "engines 3 (rollout.engines 1 * rollout.tensor_parallel 3)",
    ]


def test_every_role_has_a_group_of_its_own(load):
    config = load(*FIVE_ROLES)
    assert role_groups(config) == [("actor",), ("critic",), ("reference",), ("reward",), ("rollout",)]
    assert sum(ask.gpus for ask in asked_gpus(config)) == 1 + 2 + 1 + 2 + 1


def test_roles_that_share_gpus_ask_for_them_once(load):
    config = load(*FIVE_ROLES, "cluster.colocate=[[reward, critic], [actor, reference]]")
    assert role_groups(config) == [("actor", "reference"), ("critic", "reward"), ("rollout",)]
    assert [str(ask) for ask in asked_gpus(config)] == [
        "actor+reference 1 (train.workers, reference.workers, shared by cluster.colocate)",
        "critic+reward 2 (critic.workers, rewards.1.workers, shared by cluster.colocate)",
        "engines 1 (rollout.engines 1 * rollout.tensor_parallel 1)",
    ]


def test_engines_that_share_gpus_ask_for_no_more(load):
    shared = ("train.workers=6", "rollout.engines=2", "rollout.tensor_parallel=3")
    config = load(*shared, "cluster.colocate=[[rollout, actor]]")
    assert role_groups(config) == [("actor", "rollout")]
    assert sharers_of_engines(config) == ("actor",)
    assert [str(ask) for ask in asked_gpus(config)] == [
        "actor+rollout 6 (train.workers, rollout.engines, shared by cluster.colocate)"
    ]
    assert sharers_of_engines(load()) == ()


def test_a_role_that_the_run_does_not_have_leaves_its_group(load):
    config = load("cluster.colocate=[[actor, reference], [critic, reward]]")
    assert role_groups(config) == [("actor",), ("rollout",)]


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        ((), ["actor", "rollout"]),
        (("algorithm.kl.coefficient=0.1",), ["actor", "reference", "rollout"]),
        (("algorithm={kind: ppo}",), ["actor", "critic", "reference", "rollout"]),
        (("rewards=[{kind: model, paths: [owner/name]}]",), ["actor", "reward", "rollout"]),
    ],
)
def test_a_role_exists_only_where_something_needs_it(load, overrides, roles):
    assert [role for (role,) in role_groups(load(*overrides))] == roles


@pytest.mark.parametrize(
    ("allowed", "count"), [(None, 3), ("0,1", 2), ("", 0), ("-1", 0), ("1", 1), ("0,-1,2", 1), ("0,1,2,3", 3)]
)
def test_cuda_visible_devices_hides_gpus(tmp_path, monkeypatch, allowed, count):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    if allowed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpu_count() == count


SCORING = ("actor", "critic", "reference")


def scoring_as_finished(load, *overrides):
    config = load("algorithm={kind: ppo}", "cluster={accelerator: gpu, gpus_per_node: 8}", *overrides)
    return [role for role in SCORING if scores_as_finished(config, role)]


def test_models_with_gpus_of_their_own_score_groups_as_they_finish(load):
    assert scoring_as_finished(load) == ["actor", "critic", "reference"]
    assert scoring_as_finished(load, "rollout.score_as_finished=false") == []
    assert scoring_as_finished(load, "cluster.accelerator=cpu") == []
    assert scoring_as_finished(load, "cluster.accelerator=cpu", "rollout.score_as_finished=true") == [*SCORING]


def test_models_that_are_trained_while_engines_sample_score_the_whole_batch(load):
    assert scoring_as_finished(load, "rollout.max_staleness=1") == ["reference"]


def test_a_reference_without_workers_of_its_own_scores_when_the_actor_does(load):
    with_adapters = ("model.adapter={kind: lora}", "algorithm.kl.coefficient=0.1")
    assert scoring_as_finished(load, *with_adapters) == ["actor", "critic", "reference"]
    assert scoring_as_finished(load, *with_adapters, "rollout.max_staleness=1") == []


def test_models_that_share_gpus_with_engines_score_the_whole_batch(load):
    assert scoring_as_finished(load, "cluster.colocate=[[actor, reference, rollout]]") == ["critic"]


def test_a_deterministic_run_scores_the_whole_batch(load):
    assert scoring_as_finished(load, "run.deterministic=true", "rollout.score_as_finished=true") == []
