import pytest

from ray_rl.config import gpus
from ray_rl.config.gpus import asked_gpus, visible_gpu_count


def test_the_asks_name_their_roles_and_keys(load):
    config = load("train.workers=2", "rollout.tensor_parallel=4", "algorithm.kl.coefficient=0.1")
    assert [str(ask) for ask in asked_gpus(config)] == [
        "actor 2 (train.workers)",
        "engines 4 (rollout.engines 1 * rollout.tensor_parallel 4)",
        "reference 1 (reference.workers)",
    ]


@pytest.mark.parametrize(
    ("allowed", "count"), [(None, 3), ("0,1", 2), ("", 0), ("-1", 0), ("1", 1), ("0,-1,2", 1), ("0,1,2,3", 3)]
)
def test_cuda_visible_devices_hides_gpus(tmp_path, monkeypatch, allowed, count):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    if allowed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpu_count() == count
