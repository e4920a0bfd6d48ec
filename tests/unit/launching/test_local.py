import pytest

from ray_rl.launching.local import render
from tests.unit.launching.bash import called


def test_it_trains_here_in_the_environment_of_the_job(job, tmp_path):
    made = job('launch.environment={GREETING: "it\'s me"}', "run.seed=3")
    call = called("ray-rl", render(made), tmp_path)
    assert call.words == ["train", "run.yaml", "run.seed=3", "--resume", "auto"]
    assert made.environment.items() <= call.environment.items()
    assert call.environment["GREETING"] == "it's me"


def test_it_never_joins_a_cluster(job, tmp_path):
    call = called("ray-rl", render(job("cluster.address=auto")), tmp_path)
    assert call.words == ["train", "run.yaml", "cluster.address=null", "--resume", "auto"]


def test_a_preflight_that_fails_ends_it(job, tmp_path):
    with pytest.raises(AssertionError):
        called("ray-rl", render(job("launch.preflight=true")).replace("ray-rl doctor", "false"), tmp_path)
