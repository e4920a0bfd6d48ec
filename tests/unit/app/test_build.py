import pytest

from ray_rl.app.records import gauges_of
from ray_rl.config import RunConfig
from ray_rl.metrics.prometheus import GaugeSink
from tests.algorithm import algorithm


@pytest.mark.parametrize(("address", "exports"), [(None, False), ("auto", True), ("10.0.0.1:6379", True)])
def test_a_run_exports_gauges_where_it_joins_a_cluster(address, exports):
    config = RunConfig.model_validate(
        {
            "run": {"name": "adds", "steps": 1},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "cluster": {"address": address},
        }
    )
    assert isinstance(gauges_of(config), GaugeSink) is exports
