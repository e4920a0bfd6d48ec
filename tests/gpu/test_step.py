"""GRPO as a user runs it, with DeepSpeed and vLLM on CUDA: on a GPU for each side, and on GPUs that both share."""

import pytest

from tests.system.e2e.command import place_for, require_trained, run

STEPS = 1


@pytest.mark.gpu(2)
def test_a_step_of_grpo_trains_and_publishes_over_nccl(tmp_path):
    cluster = {"accelerator": "gpu", "gpus_per_node": 2}
    rollout = {"gpu_memory_fraction": 0.3}
    place = place_for(tmp_path, "gpu", steps=STEPS, model={"dtype": "bfloat16"}, cluster=cluster, rollout=rollout)
    require_trained(run(place), STEPS)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    "gpus", [pytest.param(1, marks=pytest.mark.gpu(1)), pytest.param(2, marks=pytest.mark.gpu(2))], ids=["one", "two"]
)
def test_two_steps_on_gpus_that_engine_and_trainer_share_publish_through_their_memory(tmp_path, gpus, level):
    """Sleep, publish and wake up twice; the engine on two GPUs is tensor-parallel over two ranks of the trainer."""
    sections = {
        "model": {"dtype": "bfloat16"},
        "cluster": {"accelerator": "gpu", "gpus_per_node": gpus, "colocate": [["actor", "rollout"]]},
        "rollout": {"gpu_memory_fraction": 0.3, "tensor_parallel": gpus, "sleep_level": level},
        "train": {"workers": gpus, "zero_stage": 3},
    }
    place = place_for(tmp_path, "shared", steps=2, **sections)
    require_trained(run(place), 2)


@pytest.mark.gpu(1)
@pytest.mark.parametrize("quantise", [None, "nf4"])
def test_two_steps_with_adapters_on_a_gpu_that_engine_and_trainer_share(tmp_path, quantise):
    """The adapters are published by themselves, to an engine with CUDA graphs."""
    sections = {
        "model": {"dtype": "bfloat16", "adapter": {"rank": 8, "quantise": quantise}},
        "cluster": {"accelerator": "gpu", "gpus_per_node": 1, "colocate": [["actor", "rollout"]]},
        "rollout": {"gpu_memory_fraction": 0.3},
        "train": {"learning_rate": 1e-3},
    }
    ended = run(place_for(tmp_path, "adapters", steps=2, **sections))
    require_trained(ended, 2)
    assert all(record["sync/logprob_gap_mean"] < 0.1 for record in ended.metrics)
