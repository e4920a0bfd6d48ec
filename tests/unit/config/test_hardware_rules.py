import pytest

from ray_rl.config.rules.check import check
from ray_rl.errors import ConfigError


def test_tensor_parallelism_divides_the_heads(load):
    check(load("rollout.tensor_parallel=3"), visible_gpus=0)
    with pytest.raises(ConfigError) as raised:
        check(load("rollout.tensor_parallel=2"), visible_gpus=0)
    assert str(raised.value) == (
        "rollout.tensor_parallel=2: does not divide the heads of smollm2-135m-instruct, 9 for queries and 3 for keys; "
        "set rollout.tensor_parallel to one of 1, 3, 9"
    )


def test_the_heads_of_an_unknown_model_are_left_to_the_engine(load):
    check(load("rollout.tensor_parallel=2", "model.path=nobody/novel-9b"), visible_gpus=0)


SHARED = "cluster.colocate=[[actor, rollout]]"
WHERE = "cluster.colocate=[['actor', 'rollout']]"


def test_engines_may_share_the_gpus_of_the_actor(passes):
    passes(SHARED)
    passes(SHARED, "train.workers=6", "rollout.engines=2", "rollout.tensor_parallel=3", "rollout.sleep_level=2")
    passes("algorithm={kind: ppo}", "cluster.colocate=[[rollout, critic, reference, actor]]")
    passes(SHARED, "cluster.accelerator=gpu", visible_gpus=1)


def test_engines_use_every_gpu_that_they_share(refused):
    assert refused(SHARED, "train.workers=6", "rollout.tensor_parallel=3") == (
        f"{WHERE}: engines use every GPU of the roles they share with, but rollout.engines=1 * "
        "rollout.tensor_parallel=3 and train.workers=6; set rollout.engines=2"
    )
    assert refused(SHARED, "train.workers=4", "rollout.tensor_parallel=3").endswith(
        "set train.workers to a multiple of 3, and rollout.engines to that divided by 3"
    )


def test_engines_share_gpus_only_with_the_actor(refused):
    assert refused("algorithm={kind: ppo}", "cluster.colocate=[[critic, rollout]]") == (
        "cluster.colocate=[['critic', 'rollout']]: engines share GPUs only with the actor, whose weights they read "
        "there; add actor to their entry or remove rollout"
    )


def test_engines_that_sleep_during_the_training_cannot_sample_ahead(refused):
    assert refused(SHARED, "rollout.max_staleness=1").startswith(
        "rollout.max_staleness=1: engines that share GPUs with the actor sleep while it is trained"
    )


def test_only_engines_that_sleep_have_a_level_of_sleep(refused):
    assert refused("rollout.sleep_level=2") == (
        "rollout.sleep_level=2: engines with GPUs of their own never sleep; remove it, or list actor and rollout "
        "together in cluster.colocate"
    )


def test_nccl_does_not_connect_an_engine_to_the_trainer_on_its_gpu(refused):
    on_gpu = ("cluster.accelerator=gpu", "weight_sync.backend=nccl")
    assert refused(SHARED, *on_gpu, visible_gpus=1) == (
        "weight_sync.backend=nccl: NCCL cannot connect two processes on one GPU, and rollout is in cluster.colocate; "
        "set weight_sync.backend=auto"
    )


@pytest.mark.parametrize(
    ("frozen", "key"),
    [("train.frozen_layers=2", "train.frozen_layers"), ("model.adapter={kind: lora}", "model.adapter")],
)
def test_weights_that_are_published_once_are_not_dropped(refused, passes, frozen, key):
    assert refused(SHARED, "rollout.sleep_level=2", frozen) == (
        f"rollout.sleep_level=2: with {key}, weights that training never changes are published once, and engines would "
        "drop them; set rollout.sleep_level=1"
    )
    passes(SHARED, frozen)
