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
