import re
from pathlib import Path

import pytest

from ray_rl.catalog.models import find_shape
from ray_rl.cli.main import main
from ray_rl.config.loading.load import load_config
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.plan import plan
from ray_rl.planner.throughput import estimate
from ray_rl.sizes import GIB

CONFIGS = Path(__file__).parents[3] / "configs"
KINDS = {
    "ppo_math": "ppo",
    "grpo_math": "grpo",
    "sft_ultrachat": "sft",
    "dpo_ultrafeedback": "dpo",
    "reward_ultrafeedback": "reward_model",
}
NAME = re.compile(rf"(?P<kind>{'|'.join(KINDS)})_(?P<model>[a-z0-9.]+-\d+b)_(?P<gpus>\d+)xh100")
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if NAME.fullmatch(path.stem))
SIZES = {7: {8, 16}, 14: {16}, 32: {24, 32}, 70: {16, 32, 48}}
SIZES_OF_EXAMPLES = {7: {8}, 70: {32}}
ONLINE = {"ppo", "grpo"}
GPUS_PER_NODE = 8


def test_there_is_a_recipe_for_every_size_of_model_and_cluster():
    found = {(_kind(path), _match(path)["model"], int(_match(path)["gpus"])) for path in RECIPES}
    billions = {(kind, int(model.rpartition("-")[2][:-1]), gpus) for kind, model, gpus in found}
    sizes = {kind: SIZES if kind in ONLINE else SIZES_OF_EXAMPLES for kind in KINDS.values()}
    assert billions == {(kind, n, gpus) for kind in sizes for n, all_ in sizes[kind].items() for gpus in all_}


def _match(path):
    return NAME.fullmatch(path.stem)


def _kind(path):
    return KINDS[_match(path)["kind"]]


@pytest.fixture(params=RECIPES, ids=[path.stem for path in RECIPES])
def recipe(request):
    return request.param


def test_a_recipe_is_what_its_name_says_and_takes_every_gpu(recipe):
    config, match = load_config(recipe), _match(recipe)
    gpus = int(match["gpus"])
    assert config.algorithm.kind == _kind(recipe)
    name = config.model.path.rpartition("/")[2].lower().replace("llama-", "llama")
    assert name.startswith(match["model"])
    assert config.cluster.nodes * GPUS_PER_NODE == gpus == plan(config).gpus
    assert config.cluster.address == "auto"


def test_ppo_has_four_models_grpo_a_reference_and_what_learns_from_examples_one(recipe):
    roles = {"ppo": {"actor", "reference", "rollout", "critic", "reward"}, "grpo": {"actor", "reference", "rollout"}}
    assert set(plan(load_config(recipe)).workers) == roles.get(_kind(recipe), {"actor"})


def test_all_models_of_a_recipe_are_known(recipe):
    config = load_config(recipe)
    paths = [config.model.path, *(config.reward_models.paths if config.reward_models else [])]
    paths += [config.critic.path] if config.critic and config.critic.path else []
    assert all(find_shape(path) for path in paths)


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_recipe_is_valid_and_fits(recipe, command, capsys):
    assert main([command, str(recipe)]) == 0
    assert capsys.readouterr().err == ""


def test_half_of_the_gpus_are_not_enough_and_a_way_out_is_proposed(recipe, capsys):
    nodes = load_config(recipe).cluster.nodes
    half = ["--nodes", str(nodes // 2)] if nodes > 1 else ["--gpus-per-node", str(GPUS_PER_NODE // 2)]
    assert main(["plan", str(recipe), *half]) == 2
    captured = capsys.readouterr()
    there = nodes // 2 * GPUS_PER_NODE or GPUS_PER_NODE // 2
    assert "does not fit" in captured.out
    assert f"and there are {there} on " in captured.err
    assert "each of these changes makes it fit:\n  cluster.nodes=" in captured.err


def test_every_recipe_says_what_it_is_for(recipe):
    lines = recipe.read_text(encoding="ascii").splitlines()
    assert lines[0].startswith("# ")
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_a_recipe_that_learns_from_examples_on_two_cores_is_valid_and_fits(name, capsys, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    recipe = f"configs/{name}_smollm2-135m_cpu.yaml"
    assert main(["validate", recipe]) == 0
    assert main(["plan", recipe]) == 0
    captured = capsys.readouterr()
    assert f"{recipe}: fits\nlayout: 1 actor, on CPU\n" in captured.out
    assert captured.err == ""


HEADER = re.compile(
    r"Best of `ray-rl plan --optimise`: (\d+) s a step, (\d+)% busy, (\d+) GiB of memory of the fullest node"
)


def test_the_header_has_the_figures_of_the_planner(recipe):
    config, text = load_config(recipe), recipe.read_text(encoding="ascii")
    head = " ".join(line.removeprefix("# ") for line in text.splitlines()[:6])
    assessment = assess(config, ClusterShape.of(config))
    times = estimate(config, assessment)
    (figures,) = HEADER.findall(head)
    assert figures == (f"{times.step_s:.0f}", f"{100 * times.busy:.0f}", f"{assessment.host_bytes / GIB:.0f}")
    if _kind(recipe) not in ONLINE:
        return
    assert times.busy >= {"grpo": 0.85, "ppo": 0.75}[_kind(recipe)]
    assert config.rollout.max_staleness == 0
    assert "Engines that share GPUs have not run on a GPU yet." in head
