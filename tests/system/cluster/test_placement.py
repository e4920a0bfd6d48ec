"""The recipe for 48 GPUs on a Ray cluster of six nodes with eight declared GPUs each: the plan is what happens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.planner.plan import Plan, plan
from tests.system.cluster.six_nodes import SHORT_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "ppo_math_llama3.3-70b_48xh100.yaml"
APART = (
    "cluster.colocate=[]",
    "train.workers=24",
    "critic.workers=4",
    "reference.workers=4",
    "rewards.1.workers=4",
    "rollout.engines=3",
    "rollout.tensor_parallel=4",
)
"""Every role on GPUs of its own."""
NODES = 6
LIMIT_S = 300


def observed(nodes: int, *overrides: str) -> dict[str, Any]:
    """What a process with a cluster of its own saw."""
    command = [sys.executable, "-m", "tests.system.cluster.six_nodes", str(RECIPE), str(nodes), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def layout() -> Plan:
    return plan(load_config(RECIPE, APART))


@pytest.fixture(scope="module")
def places() -> dict[str, list[dict[str, Any]]]:
    answer = observed(NODES, *APART)
    assert "error" not in answer, answer["error"]
    found: dict[str, list[dict[str, Any]]] = answer["places"]
    return found


def test_every_worker_lands_on_the_node_and_the_gpus_that_the_plan_says(layout, places):
    planned = {
        role: [{"node": place.node, "gpus": list(place.gpus)} for place in layout.places(role)]
        for role in layout.workers
    }
    seen = {role: [{"node": at["node"], "gpus": at["gpus"]} for at in there] for role, there in places.items()}
    assert seen == planned
    taken = [(at["node"], gpu) for there in seen.values() for at in there for gpu in at["gpus"]]
    assert sorted(taken) == [(node, gpu) for node in range(NODES) for gpu in range(8)]


def test_an_engine_is_whole_on_one_node(places):
    assert [len(set(at["gpus"])) for at in places["rollout"]] == [4, 4, 4]


def test_every_worker_sees_its_own_gpus_alone(places):
    for there in places.values():
        for at in there:
            assert at["visible"] == ",".join(map(str, at["gpus"]))


def test_with_a_node_missing_the_start_fails_in_time_and_counts_node_by_node():
    answer = observed(NODES - 1, *APART)
    assert SHORT_S <= answer["after_s"] < SHORT_S + 10
    lines = answer["error"].splitlines()
    assert lines[0].startswith("placement was not possible within cluster.start_timeout_s=5. Wanted: actor: 24 x ")
    assert lines[0].endswith("; 6 nodes wanted, 5 available:")
    assert [line.split(":")[0].strip() for line in lines[1:7]] == [f"node {i}" for i in range(NODES)]
    assert lines[1].startswith("  node 0: wanted 8 GPU, 4 CPU; ")
    assert "has 8 of 8 GPU free, " in lines[1]
    assert lines[6] == "  node 5: wanted 8 GPU, 4 CPU; there is no such node"


def test_engines_that_share_gpus_see_those_of_the_workers_that_have_them():
    roles = "actor, critic, reference, reward, rollout"
    workers = [f"{key}.workers=8" for key in ("train", "critic", "reference", "rewards.1")]
    shared = observed(
        1,
        f"cluster.colocate=[[{roles}]]",
        *workers,
        "rollout.engines=2",
        "rollout.tensor_parallel=4",
        "cluster.nodes=1",
        "cluster.cpus_per_worker=0.1",
    )
    assert "error" not in shared, shared["error"]
    places = shared["places"]
    assert [at["visible"] for at in places["rollout"]] == ["0,1,2,3", "4,5,6,7"]
    assert [at["gpus"] for at in places["rollout"]] == [[], []], "Ray gives them to the others"
    for role in ("actor", "critic", "reference", "reward"):
        assert [at["gpus"] for at in places[role]] == [[gpu] for gpu in range(8)]
