from types import SimpleNamespace

import pytest

from ray_rl.cluster import session
from ray_rl.errors import ClusterError, RecordError


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


@pytest.mark.parametrize(("error", "is_kept"), [(ClusterError("lost"), True), (RecordError("the disk is full"), False)])
def test_rays_own_logs_are_kept_for_the_owner_if_a_worker_was_lost_and_not_if_the_disk_is_full(
    tmp_path, error, is_kept
):
    logs = tmp_path / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_bytes(b"early " + b"x" * session.RAY_LOG_BYTES)
    to = tmp_path / "logs"
    to.mkdir(mode=0o700)
    with pytest.raises(type(error)), session._keeping_logs(SimpleNamespace(ray=tmp_path / "ray"), to):
        raise error
    assert (to / "ray").is_dir() is is_kept
    if is_kept:
        assert (to / "ray" / "raylet.out").read_bytes() == b"x" * session.RAY_LOG_BYTES
        assert [path.stat().st_mode & 0o777 for path in (to / "ray", to / "ray" / "raylet.out")] == [0o700, 0o600]
