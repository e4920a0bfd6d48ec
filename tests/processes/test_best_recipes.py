"""No layout that `ray-rl plan --optimise` finds is faster than that of a recipe."""

from pathlib import Path

import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.search import search
from ray_rl.planner.throughput import ASSUMED

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*xh100.yaml"))


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
