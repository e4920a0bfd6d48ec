from pathlib import Path

import pytest

from ray_rl.cli.main import main

CONFIG = str(Path(__file__).parents[3] / "configs" / "grpo_addition_smollm2-135m_cpu.yaml")
ON_GPU = ["cluster.accelerator=gpu", "train.workers=4", "rollout.engines=2", "rollout.tensor_parallel=2"]


def test_plan_prints_device_groups_and_the_arithmetic_of_a_step(capsys):
    code = main(["plan", CONFIG, *ON_GPU, "algorithm.kl.coefficient=0.1", "cluster.colocate=[[actor, reference]]",
                 "reference.workers=4", "algorithm.minibatches=2"])  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "device group 0: 4 x 1 GPU: 4 x actor, 4 x reference" in out
    assert "device group 1: 2 x 2 GPU: 2 x rollout" in out
    assert "8 of 1 x 8 GPUs" in out
    assert "8 prompts x 8 completions = 64 rollouts, about 32 on each of 2 engines" in out
    assert "2 optimizer steps of 32 rollouts, about 8 on each of 4 workers" in out


def test_a_plan_that_does_not_fit_exits_2_and_says_by_how_much(capsys):
    assert main(["plan", CONFIG, *ON_GPU, "cluster.gpus_per_node=7"]) == 2
    assert "8" in (message := capsys.readouterr().err) and "7" in message


@pytest.mark.parametrize("command", ["plan", "validate"])
def test_planning_for_gpus_needs_none_here(command, capsys):
    assert main([command, CONFIG, *ON_GPU]) == 0
