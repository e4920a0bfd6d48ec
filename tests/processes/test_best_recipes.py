"""No layout that `ray-rl plan --optimise` finds is faster than that of a recipe."""

from pathlib import Path

import pytest

from ray_rl.config.gpus import sharers_of_engines
from ray_rl.config.loading.load import load_config
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.search import search
from ray_rl.planner.throughput import ASSUMED

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*xh100.yaml"))
OF_ADAPTERS = {
    "dpo_ultrafeedback_qwen2.5-7b_1x24gb_lora": "4090-24gb",
    "grpo_math_llama3.3-70b_8x80gb_lora": "h100-80gb",
    "grpo_math_qwen2.5-7b_1x24gb_qlora": "4090-24gb",
    "grpo_math_qwen2.5-7b_2x24gb_lora": "4090-24gb",
    "sft_ultrachat_qwen2.5-7b_1x24gb_lora": "4090-24gb",
}
"""Recipes that train adapters, and their GPUs. They may be 1% slower than the best, which fills a small GPU."""


def test_there_are_recipes():
    assert len(RECIPES) == 22


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.long) if "math" in name else name for name in RECIPES]
)
def test_no_other_layout_of_a_recipe_is_faster(recipe):
    config = load_config(CONFIGS / f"{recipe}.yaml")
    found = search(config, ClusterShape.of(config), ASSUMED)
    best = found.on_policy[0]
    assert found.given.times.step_s <= 1.001 * best.times.step_s, best


@pytest.mark.parametrize(("recipe", "gpu"), OF_ADAPTERS.items())
def test_no_other_layout_of_adapters_is_much_faster(recipe, gpu):
    config = load_config(CONFIGS / f"{recipe}.yaml")
    found = search(config, ClusterShape.of(config, gpu=gpu), ASSUMED)
    # The recipe for two GPUs gives the engine one of its own, and its header says what sharing both would save.
    shares = bool(sharers_of_engines(config))
    best = next(one for one in found.on_policy if bool(sharers_of_engines(one.config)) == shares)
    assert best.config.model.adapter == config.model.adapter
    assert found.given.times.step_s <= 1.01 * best.times.step_s, best


def test_the_header_of_the_recipe_for_two_small_gpus_names_the_time_of_the_best():
    name = "grpo_math_qwen2.5-7b_2x24gb_lora"
    file = CONFIGS / f"{name}.yaml"
    config = load_config(file)
    best = search(config, ClusterShape.of(config, gpu=OF_ADAPTERS[name]), ASSUMED).on_policy[0]
    words = " ".join(line.removeprefix("# ") for line in file.read_text(encoding="ascii").splitlines()[:4])
    assert f"The best of `--optimise` takes {best.times.step_s:.0f} s: actor and engine take turns" in words
