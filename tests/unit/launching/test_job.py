import pytest

from ray_rl.cli.launch import job_of
from ray_rl.config.loading.load import load_config
from ray_rl.errors import ConfigError


def test_the_entrypoint_is_the_same_for_every_attempt_and_joins_the_cluster(job):
    assert job("run.seed=3").entrypoint == (
        "ray-rl", "train", "run.yaml", "run.seed=3", "cluster.address=auto", "--resume", "auto",
    )  # fmt: skip


def test_how_it_is_launched_is_no_business_of_the_driver(job):
    made = job("launch.queue=h100", "launch={retries: 1}", "cluster.address=10.0.0.1:6379", "run.seed=3")
    assert [word for word in made.entrypoint if "=" in word] == ["run.seed=3", "cluster.address=auto"]


def test_the_hash_tells_runs_apart_and_not_the_ways_to_launch_one(job):
    assert job("run.seed=3").config_hash != job().config_hash
    assert job("launch.retries=1").config_hash == job().config_hash
    assert len(job().config_hash) == 12


def test_ray_waits_for_a_job_that_saves_for_longer_than_the_job_needs(job):
    assert job("run.grace_s=600.5").environment["RAY_JOB_STOP_WAIT_TIME_S"] == "616"


def test_a_variable_of_the_user_goes_before_ours(job):
    assert job("launch.environment={RAY_DEDUP_LOGS: '1'}").environment["RAY_DEDUP_LOGS"] == "1"


@pytest.mark.parametrize("path", ["/tmp/run.yaml", "../run.yaml"])
def test_a_configuration_that_the_cluster_does_not_get_is_refused(job, path):
    job()
    with pytest.raises(ConfigError, match="must be inside the current folder"):
        job_of(load_config("run.yaml"), path)
