import pytest

from ray_rl.planner.states import step_copy, trained_states
from tests.zero_conventions import deepspeed_states, paper_states

N, D = 1000, 4


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_states_of_7_5_billion_parameters_on_64_gpus_are_those_of_the_paper(stage, gigabytes):
    """arXiv:1910.02054, figure 1."""
    assert paper_states(7.5e9, stage=stage, workers=64) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def on_worker(stage, *, dtype="bfloat16", gradient_dtype="float32"):
    states = trained_states(stage=stage, dtype=dtype, gradient_dtype=gradient_dtype)
    return {state.name: state.on_worker(N, D) / N for state in states}


@pytest.mark.parametrize(
    ("stage", "gradient_dtype", "states"),
    [
        (0, "bfloat16", {"weights": 2, "gradients": 2, "optimizer": 12}),
        (1, "float32", {"weights": 2, "gradients": 6, "optimizer": 3}),
        (1, "bfloat16", {"weights": 2, "gradients": 2, "optimizer": 3}),
        (2, "float32", {"weights": 2, "gradients": 1, "optimizer": 3}),
        (2, "bfloat16", {"weights": 2, "gradients": 1, "optimizer": 3}),
        (3, "float32", {"weights": 0.5, "gradients": 1, "optimizer": 3}),
        (3, "bfloat16", {"weights": 0.5, "gradients": 0.5, "optimizer": 3}),
    ],
)
def test_bytes_a_parameter_on_four_workers_under_bfloat16(stage, gradient_dtype, states):
    assert on_worker(stage, gradient_dtype=gradient_dtype) == states


@pytest.mark.parametrize(
    ("stage", "states"),
    [
        (0, {"weights": 4, "gradients": 4, "optimizer": 8}),
        (1, {"weights": 4, "gradients": 4, "optimizer": 3}),
        (2, {"weights": 4, "gradients": 2, "optimizer": 3}),
        (3, {"weights": 1, "gradients": 1, "optimizer": 3}),
    ],
)
def test_in_float32_zero_keeps_a_master_copy_beside_the_weights_and_plain_adam_none(stage, states):
    assert on_worker(stage, dtype="float32") == states


@pytest.mark.parametrize(
    ("stage", "gradient_dtype", "copy"),
    [
        (0, "bfloat16", 4 * N),
        (1, "float32", 0),
        (1, "bfloat16", 8 * N / D),
        (2, "float32", 0),
        (2, "bfloat16", 6 * N / D),
        (3, "float32", 4 * N / D),
        (3, "bfloat16", 6 * N / D),
    ],
)
def test_the_optimizer_step_makes_a_float32_gradient_of_what_is_not_one(stage, gradient_dtype, copy):
    settings = {"stage": stage, "workers": D, "dtype": "bfloat16", "gradient_dtype": gradient_dtype}
    assert step_copy(N, **settings, sub_group=N) == copy


def test_stage_3_steps_in_groups():
    settings = {"stage": 3, "workers": D, "dtype": "bfloat16", "gradient_dtype": "float32"}
    assert step_copy(N, **settings, sub_group=100) == 400


def test_the_estimators_of_deepspeed_count_what_is_offloaded_on_the_cpu():
    settings = {"workers": D, "largest_module": 10}
    assert deepspeed_states(N, stage=2, **settings, offload_optimizer=True) == {"weights": 2 * N}
    assert deepspeed_states(N, stage=3, **settings, offload_optimizer=True, offload_parameters=True) == {"gathered": 40}


def test_the_estimators_of_deepspeed_count_gradients_twice_at_stage_2_and_gather_a_module_at_stage_3():
    settings = {"workers": D, "largest_module": 10}
    two, three = (deepspeed_states(N, stage=stage, **settings) for stage in (2, 3))
    assert two == {"weights": 2 * N, "gradients": 6 * N / D, "optimizer": 12 * N / D}
    assert three == {"weights": 2 * N / D, "gathered": 40, "gradients": 4 * N / D, "optimizer": 12 * N / D}
