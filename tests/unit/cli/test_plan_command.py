from pathlib import Path

import pytest

from ray_rl.cli.main import main

CONFIGS = Path(__file__).parents[3] / "configs"
CONFIG = str(CONFIGS / "grpo_addition_smollm2-135m_cpu.yaml")
RECIPE = str(CONFIGS / "ppo_math_llama3.3-70b_48xh100.yaml")
ON_GPU = ["cluster.accelerator=gpu", "train.workers=4", "rollout.engines=2", "rollout.tensor_parallel=3"]


def test_plan_prints_the_layout_and_the_arithmetic_of_a_step(capsys):
    code = main(["plan", CONFIG, *ON_GPU, "algorithm.kl.coefficient=0.1", "cluster.colocate=[[actor, reference]]",
                 "reference.workers=4", "algorithm.minibatches=2", "--nodes", "2"])  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "10 of 2 x 8 GPUs (h100-80gb, 79.6 GiB each)" in out
    assert "node 0: actor+reference 0-3 on GPU 0-3; rollout 0 on GPU 4-6" in out
    assert "node 1: rollout 1 on GPU 0-2" in out
    assert "8 prompts x 8 completions = 64 rollouts of at most 88 tokens, at most 32 on each of 2 engines" in out
    assert "2 optimizer steps of 32 rollouts" in out
    assert "actor: at most 8 rollouts per worker" in out


def test_plan_prints_every_term_of_memory_and_what_a_publish_sends(capsys):
    assert main(["plan", RECIPE]) == 0
    out = capsys.readouterr().out
    for term in ("weights", "gradients", "optimizer", "activations", "logits", "KV cache"):
        assert term in out
    assert "sync: 131.42 GiB per publish, to 40 workers of 5 engines" in out


def test_a_plan_that_does_not_fit_exits_2_and_says_by_how_much_and_what_would(capsys):
    assert main(["plan", CONFIG, *ON_GPU, "cluster.gpus_per_node=7"]) == 2
    captured = capsys.readouterr()
    assert "does not fit" in captured.out
    assert captured.err.splitlines() == [
        "ray-rl: error: the run does not fit:",
        "  the roles need 10 GPUs on 2 nodes (actor 4, rollout 2 x 3), and there are 7 on 1",
        "each of these changes makes it fit:",
        "  cluster.nodes=2",
        "  'cluster.colocate=[[actor,rollout]]' train.workers=7 rollout.engines=7 \\",
        "    rollout.tensor_parallel=1",
        "    (if every node has 49 GiB of memory for it: --host-memory)",
        "  train.workers=2 rollout.engines=1",
    ]


def test_another_gpu_may_be_too_small(capsys):
    assert main(["plan", RECIPE, "--gpu", "a100-40gb"]) == 2
    assert "of the 40.0 GiB of a100-40gb can be used" in capsys.readouterr().err
    assert main(["plan", RECIPE, "--gpu", "k80"]) == 2
    assert "--gpu k80: not a GPU that the planner knows" in capsys.readouterr().err


def test_a_pasted_proposal_holds_against_the_options_before_it(capsys):
    assert main(["plan", RECIPE, "--nodes", "3"]) == 2
    assert "\n  cluster.nodes=6\n" in capsys.readouterr().err
    assert main(["plan", RECIPE, "--nodes", "3", "cluster.nodes=6"]) == 0


def test_memory_of_gpus_and_nodes_may_be_given_in_gigabytes(capsys):
    small = ["model.path=Qwen/Qwen2.5-0.5B", "train.workers=1", "train.zero_stage=1", "algorithm.kind=grpo"]
    words = ["plan", CONFIG, "cluster.accelerator=gpu", *small]
    assert main([*words, "--gpu-memory", "24"]) == 0
    assert "(24 GB GPU, 24.0 GiB each)" in capsys.readouterr().out
    assert main([*words, "--gpu-memory", "6"]) == 2
    assert "of the 6.0 GiB of 6 GB GPU can be used" in capsys.readouterr().err
    assert main([*words, "--gpu", "4090", "--host-memory", "4"]) == 2
    assert "memory of the host: node 0 needs " in capsys.readouterr().err
    assert main([*words, "--gpu-memory", "0"]) == 2
    assert "--gpu-memory 0: not an amount of memory" in capsys.readouterr().err


def test_an_engine_larger_than_a_node_is_refused_before_it_is_planned(capsys):
    assert main(["plan", RECIPE, "--gpus-per-node", "2"]) == 2
    assert "rollout.tensor_parallel=8: an engine never spans nodes" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "validate"])
def test_planning_for_gpus_needs_none_here(command, capsys):
    assert main([command, CONFIG, *ON_GPU, "cluster.nodes=2"]) == 0


@pytest.mark.parametrize(("option", "value"), [("--gpu", "4090"), ("--gpu-memory", "24.0"), ("--gpus-per-node", "8")])
def test_options_of_gpus_are_not_ignored_in_silence_for_a_run_on_cpu(option, value, capsys):
    assert main(["plan", CONFIG, option, value]) == 2
    assert capsys.readouterr().err == (
        f"ray-rl: error: {option} {value}: the run is on CPU (cluster.accelerator=cpu); add cluster.accelerator=gpu "
        "to plan it on GPUs, or leave the option out\n"
    )
    assert main(["plan", CONFIG, option, value, "cluster.accelerator=gpu"]) == 0


def time_of(out):
    return next(line for line in out.splitlines() if line.startswith("time of a step"))


def test_lengths_and_rates_change_the_time(capsys, tmp_path):
    assert main(["plan", RECIPE]) == 0
    assert time_of(capsys.readouterr().out).startswith("time of a step, if every completion has full length: ")
    assert main(["plan", RECIPE, "--lengths", "mean=600,prompt=120"]) == 0
    assert time_of(capsys.readouterr().out).startswith("time of a step, if completions have 600 tokens on average ")
    slow = tmp_path / "rates.json"
    slow.write_text('{"training": 1e13}')
    assert main(["plan", RECIPE, "--rates", str(slow)]) == 0
    assert "\ntime of the run: 109.6 h for 200 steps" in capsys.readouterr().out
    assert main(["plan", RECIPE, "--lengths", "mean=much"]) == 2
    assert "--lengths mean=much: " in capsys.readouterr().err


def test_rates_of_this_machine_give_a_run_on_cpu_a_time(capsys, tmp_path):
    rates = tmp_path / "rates.json"
    rates.write_text(
        '{"training": 1e11, "scoring": 1e11, "decoding": 1e11, "memory": 1e10, "link": 1e9, "network": 1e9}'
    )
    assert main(["plan", CONFIG]) == 0
    assert "time of a step" not in capsys.readouterr().out
    assert main(["plan", CONFIG, "--rates", str(rates)]) == 0
    assert time_of(capsys.readouterr().out)


def test_examples_have_no_lengths_of_completions(capsys):
    assert main(["plan", "configs/sft_ultrachat_qwen2.5-7b_8xh100.yaml", "--lengths", "mean=600"]) == 2
    assert "--lengths mean=600: algorithm.kind=sft samples no completions" in capsys.readouterr().err


def test_optimise_prints_the_fastest_layouts_for_the_given_gpus(capsys):
    recipe = "configs/sft_ultrachat_qwen2.5-7b_8xh100.yaml"
    assert main(["plan", recipe, "--optimise", "--gpus-per-node", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("searching 1 layout for 1 x 4 GPUs")
    assert "as given: does not fit\nthe fastest that fits:\n  1. " in out
    assert "train.workers=4" in out
    assert main(["plan", CONFIG, "--optimise"]) == 2
    assert "--optimise: searches layouts of GPUs, and the run is on CPU" in capsys.readouterr().err
