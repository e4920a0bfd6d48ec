"""PPO whose roles all take turns on the same devices trains bit for bit as with devices for each.

On CPU memory stays where it is, while everything else happens as on GPUs: engines really pause and wake up, and models
are really asked to leave and to come back.
"""

import json
from pathlib import Path

import pytest

from tests.system.e2e.test_ppo import CONFIG, overrides, ray_rl
from tests.tiny_model import write_tiny_model
from tests.tiny_reward_model import write_tiny_reward_model

ROLES = ("actor", "critic", "reference", "reward", "rollout")
SHARED = f"cluster.colocate=[[{', '.join(ROLES)}]]"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("shared")
    write_tiny_model(place / "policy")
    for seed in range(3):
        write_tiny_reward_model(place / f"judge-{seed}", seed=seed)
    return place


def trained(place: Path, name: str, *changes: str) -> tuple[list[dict], bytes]:
    """Metrics without times, and the exported weights."""
    words = [*overrides(place), f"run.name={name}", "run.deterministic=true", "rewards.1.workers=1", *changes]
    done = ray_rl("train", str(CONFIG), *words, place=place)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = place / "runs" / name
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "throughput/", "sync/gb", "sync/turn", "memory/")
    kept = [{key: value for key, value in record.items() if not key.startswith(timed)} for record in records]
    return kept, (folder / "export" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def apart(place):
    return trained(place, "apart")


@pytest.mark.parametrize(("level", "backend"), [pytest.param(1, "shared_memory", marks=pytest.mark.long), (2, "ipc")])
def test_sharing_all_devices_changes_nothing_of_what_is_trained(place, apart, level, backend):
    how = (f"rollout.sleep_level={level}", f"weight_sync.backend={backend}")
    metrics, weights = trained(place, f"level-{level}", SHARED, *how)
    assert metrics == apart[0]
    assert weights == apart[1]
