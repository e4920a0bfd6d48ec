import subprocess
import sys

import pytest

from ray_rl.cluster.environment import prepare_environment, quiet_libraries


@pytest.fixture
def environ(monkeypatch):
    """An environment of its own, without Ray's variables."""
    environ = {}
    monkeypatch.setattr("ray_rl.cluster.environment.os.environ", environ)
    return environ


def test_a_cluster_started_here_gets_a_token_that_nobody_else_knows(environ):
    prepare_environment(local=True)
    assert environ["RAY_AUTH_MODE"] == "token"
    first = environ["RAY_AUTH_TOKEN"]
    assert len(first) == 64
    environ.clear()
    prepare_environment(local=True)
    assert environ["RAY_AUTH_TOKEN"] != first


def test_a_cluster_started_here_listens_on_loopback_and_one_that_is_joined_does_not(environ):
    prepare_environment(local=False)
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in environ
    prepare_environment(local=True)
    assert environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="names Linux's loopback interface")
def test_groups_of_a_cluster_started_here_meet_on_loopback_unless_the_user_says_otherwise(environ):
    prepare_environment(local=False)
    assert "GLOO_SOCKET_IFNAME" not in environ
    environ["NCCL_SOCKET_IFNAME"] = "ib0"
    prepare_environment(local=True)
    found = [environ[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP")]
    assert found == ["lo", "ib0", "127.0.0.1"]


def test_a_cluster_that_is_joined_keeps_the_authentication_that_it_has(environ):
    prepare_environment(local=False)
    assert "RAY_AUTH_MODE" not in environ
    assert "RAY_AUTH_TOKEN" not in environ


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_the_users_own_authentication_stays(environ, mode):
    environ["RAY_AUTH_MODE"] = mode
    prepare_environment(local=True)
    assert environ["RAY_AUTH_MODE"] == mode
    assert "RAY_AUTH_TOKEN" not in environ


def test_workers_are_not_nicer_than_the_processes_beside_them_unless_the_user_says_so(environ):
    prepare_environment(local=True)
    assert environ["RAY_worker_niceness"] == "0"
    environ["RAY_worker_niceness"] = "5"
    prepare_environment(local=True)
    assert environ["RAY_worker_niceness"] == "5"


def test_preparing_does_not_import_ray_which_reads_the_environment_at_once():
    program = "import sys, ray_rl.cluster.environment; assert 'ray' not in sys.modules, 'ray was imported'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("on_cpu", [True, False])
def test_libraries_draw_no_progress_bars_and_deepspeed_knows_its_accelerator(environ, on_cpu):
    environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    quiet_libraries(on_cpu=on_cpu)
    names = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "DS_ACCELERATOR")
    assert [environ.get(name) for name in names] == ["1", "0", "1", "cpu" if on_cpu else None]
    bar = [sys.executable, "-c", "from tqdm.auto import tqdm; list(tqdm(range(3)))"]
    shown = subprocess.run(bar, env=environ, capture_output=True, text=True, check=True)
    assert (shown.stdout, shown.stderr) == ("", "")


def test_no_worker_of_a_cluster_started_here_waits_for_work_that_never_comes(environ):
    prepare_environment(local=False)
    assert "RAY_prestart_worker_first_driver" not in environ
    prepare_environment(local=True)
    assert environ["RAY_prestart_worker_first_driver"] == "0"
