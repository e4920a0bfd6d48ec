import pytest

from ray_rl.cli.main import main
from ray_rl.launching.kuberay.manifest import manifests
from ray_rl.launching.kuberay.retries import OF_A_RAY_JOB, RAY_JOB, forbid_retries
from tests.launching.kuberay.api_server import ApiServer
from tests.unit.launching.jobs import job


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = ApiServer(tmp_path_factory.mktemp("api") / "server", address="127.0.0.1")
    with server.serving():
        yield server


@pytest.fixture
def environment(server):
    """Of the driver of the job `math`, which has its own account."""
    server.apply(manifests(job(name="math", retries=3)))
    server.answers.clear()
    return {
        RAY_JOB: "math",
        OF_A_RAY_JOB: "{}",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(server.port),
    }


def retries(server):
    return server.objects["RayJob", "math"]["spec"]["backoffLimit"]


def test_the_limit_becomes_0(server, environment):
    account = server.credentials("math", "default")
    assert forbid_retries(environment, account=account) == "RayJob math will not retry"
    assert (retries(server), server.answers) == (0, [200])


def test_without_the_right_it_says_so(server, environment):
    message = forbid_retries(environment, account=server.credentials("someone", "default"))
    assert "RayJob math could not be changed and will retry: HTTP Error 403" in message
    assert retries(server) == 3


def test_a_server_that_the_pod_does_not_know_is_not_told_the_token(server, environment, tmp_path):
    other = ApiServer(tmp_path / "other", address="127.0.0.1")
    account = other.credentials("math", "default")
    assert "CERTIFICATE_VERIFY_FAILED" in forbid_retries(environment, account=account)
    assert server.answers == []


def test_without_a_token_it_says_so(environment, tmp_path):
    assert "could not be changed" in forbid_retries(environment, account=tmp_path)


def test_without_an_address_it_says_so(environment, tmp_path):
    del environment["KUBERNETES_SERVICE_HOST"]
    assert "KUBERNETES_SERVICE_HOST is not set" in forbid_retries(environment, account=tmp_path)


@pytest.mark.parametrize("missing", [RAY_JOB, OF_A_RAY_JOB])
def test_what_is_not_the_driver_leaves_the_job_alone(missing, environment, tmp_path):
    del environment[missing]
    assert forbid_retries(environment, account=tmp_path) is None


@pytest.mark.parametrize(
    ("words", "code"), [(["validate", "no-such.yaml"], 2), (["validate", "--no-such-flag"], 2), (["--version"], 0)]
)
def test_the_command_tells_it_where_it_ends_with_2_and_only_there(words, code, environment, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        ended = main(words)
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert ("RayJob math could not be changed" in capsys.readouterr().err) == (code == 2)
