from types import SimpleNamespace

import pytest

from ray_rl.cluster import session
from ray_rl.errors import ClusterError


def test_a_ray_that_does_not_start_in_time_is_an_error_with_a_remedy_and_not_an_internal_one(monkeypatch, tmp_path):
    def init(**options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(session.ray, "init", init)
    with (
        pytest.raises(ClusterError) as caught,
        session._started(SimpleNamespace(cpus=1.0), SimpleNamespace(ray=tmp_path)),
    ):
        pass
    assert str(caught.value).startswith(
        "Ray did not start on this machine: The current node timed out during startup; the ends of its logs are in "
    )
    assert str(caught.value).endswith("free memory and idle cores (`ray-rl doctor`), then start again")
