"""GRPO as a user runs it, with DeepSpeed and vLLM on CUDA: the trainer on one GPU, the engine on another."""

import pytest

from tests.system.e2e.command import place_for, require_trained, run

pytestmark = pytest.mark.gpu(2)

STEPS = 1


def test_a_step_of_grpo_trains_and_publishes_over_nccl(tmp_path):
    cluster = {"accelerator": "gpu", "gpus_per_node": 2}
    rollout = {"gpu_memory_fraction": 0.3}
    place = place_for(tmp_path, "gpu", steps=STEPS, model={"dtype": "bfloat16"}, cluster=cluster, rollout=rollout)
    require_trained(run(place), STEPS)
