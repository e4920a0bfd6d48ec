"""Recipes that train adapters: each fits the GPUs in its name, and its header has the figures of the planner."""

import re
from pathlib import Path

import pytest

from ray_rl.cli.main import main
from ray_rl.config.adapter import RATE_RATIO
from ray_rl.config.loading.load import load_config
from ray_rl.config.rules.adapter import learning_rate_advice
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.plan import plan
from ray_rl.planner.throughput import estimate
from ray_rl.sizes import GIB

CONFIGS = Path(__file__).parents[3] / "configs"
NAME = re.compile(r"(?P<kind>[a-z]+)_[a-z]+_(?P<model>[a-z0-9.]+-\d+b)_(?P<gpus>\d+)x(?P<gb>\d+)gb_q?lora")
RECIPES = sorted([*CONFIGS.glob("*gb_lora.yaml"), *CONFIGS.glob("*gb_qlora.yaml")])
GPU = {"24": "4090-24gb", "80": "h100-80gb"}
FIGURES = re.compile(
    r"(?:Best of|By) `ray-rl plan[^`]*`: (\d+) s a step(?: of full length)?, (\d+)% busy, (\d+) GiB of memory"
)


@pytest.fixture(params=RECIPES, ids=[path.stem for path in RECIPES])
def recipe(request):
    return request.param


def _planned(recipe):
    config = load_config(recipe)
    return config, assess(config, ClusterShape.of(config, gpu=GPU[NAME.fullmatch(recipe.stem)["gb"]]))


def test_there_are_recipes_for_one_two_and_eight_gpus():
    assert [NAME.fullmatch(path.stem).group("kind", "gpus", "gb") for path in RECIPES] == [
        ("dpo", "1", "24"),
        ("grpo", "8", "80"),
        ("grpo", "1", "24"),
        ("grpo", "2", "24"),
        ("sft", "1", "24"),
    ]


def test_a_recipe_is_what_its_name_says_and_takes_every_gpu(recipe):
    config, match = load_config(recipe), NAME.fullmatch(recipe.stem)
    assert config.algorithm.kind == match["kind"]
    assert config.model.path.rpartition("/")[2].lower().replace("llama-", "llama").startswith(match["model"])
    assert config.cluster.nodes * config.cluster.gpus_per_node == int(match["gpus"]) == plan(config).gpus
    assert config.model.adapter is not None
    assert (config.model.adapter.quantise == "nf4") == recipe.stem.endswith("_qlora")
    assert "reference" not in plan(config).workers


def test_a_recipe_is_valid_and_fits(recipe, capsys):
    assert main(["validate", str(recipe)]) == 0
    assert main(["plan", str(recipe), "--gpu", GPU[NAME.fullmatch(recipe.stem)["gb"]]]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "saves, compared with training all weights: actor " in captured.out


def test_the_header_has_the_figures_of_the_planner(recipe):
    config, assessment = _planned(recipe)
    text = recipe.read_text(encoding="ascii")
    head = " ".join(line.removeprefix("# ") for line in text.splitlines()[:5])
    times = estimate(config, assessment)
    (figures,) = FIGURES.findall(head)
    assert figures == (f"{times.step_s:.0f}", f"{100 * times.busy:.0f}", f"{assessment.host_bytes / GIB:.0f}")
    assert all(len(line) <= 120 for line in text.splitlines())


def test_learning_rates_are_those_of_adapters(recipe):
    config = load_config(recipe)
    assert list(learning_rate_advice(config)) == []
    model = NAME.fullmatch(recipe.stem)["model"]
    (full, *_) = sorted(CONFIGS.glob(f"{recipe.stem.partition('_' + model)[0]}_{model}_*xh100.yaml"))
    assert config.train.learning_rate == pytest.approx(RATE_RATIO * load_config(full).train.learning_rate)


def test_half_of_the_memory_is_not_enough(recipe, capsys):
    gb = int(NAME.fullmatch(recipe.stem)["gb"]) / 2
    assert main(["plan", str(recipe), "--gpu-memory", f"{gb:g}"]) == 2
    assert "does not fit" in capsys.readouterr().out
