import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.config.rules.launch import check_launch
from ray_rl.errors import ConfigError


@pytest.fixture
def refused(job):
    """The message with which a way to launch refuses the smallest configuration under overrides."""

    def message(backend, *overrides):
        job()
        with pytest.raises(ConfigError) as caught:
            check_launch(load_config("run.yaml", overrides), backend, overrides)
        return str(caught.value)

    return message


def test_a_ray_job_needs_a_run_folder_that_outlives_its_copy_of_the_project(refused, job):
    text = refused("ray-job", "run.dir=runs")
    assert text.startswith("run.dir=runs: a Ray job runs in a copy of the current folder, which Ray deletes later")
    assert text.endswith("for example run.dir=/shared/runs")
    check_launch(job("run.dir=/shared/runs").config, "ray-job")
    check_launch(job("run.dir=~/runs").config, "ray-job")


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_where_the_project_itself_is_shared_a_relative_folder_is_right(job, backend):
    check_launch(job("run.dir=runs").config, backend)


@pytest.mark.parametrize("backend", ["local", "ray-job", "slurm", "kuberay"])
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("launch.environment={HF_TOKEN: hf_123456}", "launch.environment: HF_TOKEN looks"),
        ("launch.environment={http_proxy: 'http://me:hf_123456@proxy'}", "launch.environment: http_proxy looks"),
        ("rewards.0={kind: custom, function: 'a:b', options: {api_key: hf_123456}}", "override 'rewards.0="),
    ],
)
def test_a_secret_is_refused_without_being_shown(refused, backend, override, named):
    text = refused(backend, override)
    assert named in text
    assert "looks like a secret, and others can read the job; put it into " in text
    assert "hf_123456" not in text


def test_a_password_in_the_address_is_refused(refused):
    text = refused("ray-job", "launch.ray_job.address=http://me:hf_123456@head:8265")
    assert "launch.ray_job.address: contains a password" in text
    assert "hf_123456" not in text


def test_what_is_no_variable_is_refused(refused):
    assert "launch.environment.A B;c: not the name of a variable" in refused("slurm", "launch.environment={'A B;c': x}")


@pytest.mark.parametrize("backend", ["local", "ray-job", "slurm", "kuberay"])
@pytest.mark.parametrize("name", ["UID", "IFS", "BASH_ENV"])
def test_a_variable_that_bash_keeps_for_itself_is_refused(refused, backend, name):
    text = refused(backend, f"launch.environment={{{name}: x}}")
    assert f"launch.environment.{name}: bash sets this variable, and every launcher uses bash" in text


@pytest.mark.parametrize("value", [r'"a\0b"', r'"a\uD800b"'])
def test_a_value_that_no_variable_can_hold_is_refused(refused, value):
    assert "launch.environment.ODD: has a null character" in refused("local", f"launch.environment={{ODD: {value}}}")


@pytest.mark.parametrize(("value", "named"), [("at $HOME/x", "$HOME"), ("${x}", "${x}"), ("$$a", "$a")])
def test_what_ray_would_replace_is_refused_for_a_ray_job_alone(refused, job, value, named):
    override = f"launch.environment={{PLACE: '{value}'}}"
    assert f"launch.environment.PLACE: Ray would replace {named} by a variable" in refused("ray-job", override)
    for backend in ("local", "slurm", "kuberay"):
        check_launch(job(override).config, backend)
