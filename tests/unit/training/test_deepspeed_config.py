from typing import Any

import pytest

from ray_rl.config import RunConfig
from ray_rl.training.deepspeed_config import deepspeed_config, merge, with_bucket
from tests.algorithm import algorithm


def settings(*, dtype: str = "float32", accelerator: str = "cpu", **train: Any) -> dict[str, Any]:
    config = RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": "tiny", "dtype": dtype},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "train": train,
            "cluster": {"accelerator": accelerator},
        }
    )
    return deepspeed_config(config.train, dtype=dtype, accelerator=accelerator)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_is_zeros(stage):
    assert settings(accelerator="gpu", zero_stage=stage)["zero_optimization"] == {"stage": stage}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_on_cpu_gradients_are_reduced_without_copies(stage):
    zero = settings(zero_stage=stage)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 1
    assert zero.get("reduce_scatter") is (None if stage == 3 else False)


def test_the_users_bucket_wins_on_cpu():
    own = {"zero_optimization": {"reduce_bucket_size": 1000, "reduce_scatter": True}}
    zero = settings(zero_stage=2, deepspeed=own)["zero_optimization"]
    assert zero == {"stage": 2, "reduce_bucket_size": 1000, "reduce_scatter": True}


def test_both_divisors_of_deepspeed_are_one():
    generated = settings()
    assert generated["gradient_accumulation_steps"] == generated["train_micro_batch_size_per_gpu"] == 1


def test_gradients_are_clipped_by_deepspeed():
    assert settings(clip_grad_norm=0.3)["gradient_clipping"] == 0.3


def test_float32_asks_for_no_mixed_precision():
    assert not {"bf16", "fp16", "data_types"} & settings(dtype="float32").keys()


def test_bfloat16_sums_gradients_in_the_dtype_that_is_asked_for():
    exact = settings(dtype="bfloat16", gradient_dtype="float32")
    assert exact["bf16"] == {"enabled": True}
    assert exact["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in settings(dtype="bfloat16", gradient_dtype="bfloat16")


@pytest.mark.parametrize(("accelerator", "pinned"), [("cpu", False), ("gpu", True)])
def test_offloaded_memory_is_pinned_where_there_is_a_gpu(accelerator, pinned):
    offload = {"optimizer": True, "parameters": True}
    zero = settings(accelerator=accelerator, zero_stage=3, offload=offload)["zero_optimization"]
    device = {"device": "cpu", "pin_memory": pinned}
    assert zero["offload_optimizer"] == zero["offload_param"] == device


def test_the_users_own_settings_win_and_leave_the_rest():
    own = {"zero_optimization": {"overlap_comm": True}, "steps_per_print": 10, "wall_clock_breakdown": True}
    generated = settings(accelerator="gpu", zero_stage=2, deepspeed=own)
    assert generated["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert generated["steps_per_print"] == 10
    assert generated["wall_clock_breakdown"] is True


def test_merging_leaves_its_arguments_as_they_were():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": {"e": 4}}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}, "d": {"e": 4}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": {"e": 4}})


def test_a_mapping_over_a_value_replaces_it():
    assert merge({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}
    assert merge({"a": {"b": 2}}, {"a": 1}) == {"a": 1}


def test_no_more_gradients_are_reduced_together_than_there_are():
    def size(elements, **train):
        made = with_bucket(settings(accelerator="gpu", **train), elements=elements)
        return made["zero_optimization"]["reduce_bucket_size"]

    assert (size(1000), size(10**9)) == (1000, 500_000_000)
    assert size(1000, deepspeed={"zero_optimization": {"reduce_bucket_size": 7}}) == 7
    assert with_bucket(settings(), elements=1000) == settings()
