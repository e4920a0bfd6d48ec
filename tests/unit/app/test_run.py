import pytest

from ray_rl.app.run import run_training
from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError


def test_engines_that_share_gpus_are_planned_but_not_started(tmp_path):
    config = RunConfig.model_validate(
        {
            "run": {"name": "shared", "steps": 1, "dir": str(tmp_path)},
            "model": {"path": "smollm2-135m-instruct"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": {"kind": "grpo"},
            "cluster": {"accelerator": "cpu", "colocate": [["actor", "rollout"]]},
        }
    )
    with pytest.raises(ConfigError, match="engines that share GPUs with actor can be planned and validated, but not"):
        run_training(config)
    assert not list(tmp_path.iterdir())
