"""What is said before Ray is asked, or where nobody answers as Ray does."""

import socket
import threading
import time

import pytest

from ray_rl.cluster import environment
from ray_rl.errors import ClusterError, UserError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # put back afterwards, whatever is set here
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def connect(address):
    from ray_rl.cluster.ray_jobs import Jobs

    return Jobs(address)


@pytest.mark.parametrize("address", [None, "auto", "10.0.0.1:6379", "ray://head:10001", "http://head:port"])
def test_what_is_no_address_of_a_dashboard_is_refused_with_the_form_of_one(address):
    with pytest.raises(UserError, match="http://host:8265"):
        connect(address)


def test_where_nobody_listens_it_says_so_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began_s = time.monotonic()
    with pytest.raises(ClusterError, match=f"http://127.0.0.1:{port}: nobody answers"):
        connect(f"http://127.0.0.1:{port}")
    assert time.monotonic() - began_s < 5


def serve(server, reply):
    with server.accept()[0] as connection:  # the look whether anybody listens
        connection.recv(1)
    with server.accept()[0] as connection:
        connection.recv(4096)
        connection.sendall(reply)


def test_what_is_not_ray_is_named():
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n<html/>"
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server, reply), daemon=True)
        thread.start()
        with pytest.raises(ClusterError, match="does not answer as the dashboard of a Ray cluster does"):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(timeout=5)


def test_one_who_listens_and_says_nothing_is_given_up(monkeypatch):
    from ray_rl.cluster import ray_jobs as jobs

    monkeypatch.setattr(jobs, "ANSWER_S", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ClusterError, match=r"no answer within 0\.5 s"),
    ):
        connect(f"http://127.0.0.1:{server.getsockname()[1]}")


class TestToken:
    @pytest.fixture
    def token(self, tmp_path):
        file = tmp_path / "token"
        file.touch(mode=0o600)
        file.write_text("s3cret-s3cret")
        return file

    def test_its_file_goes_before_what_the_environment_says(self, token, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
        environment.use_token(str(token))
        assert environment.os.environ["RAY_AUTH_MODE"] == "token"
        assert environment.os.environ["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert "RAY_AUTH_TOKEN" not in environment.os.environ

    def test_one_that_others_may_read_is_refused_without_being_shown(self, token):
        token.chmod(0o640)
        with pytest.raises(UserError) as caught:
            environment.use_token(str(token))
        assert "others can read it (mode 640); run chmod 600" in str(caught.value)
        assert "s3cret" not in str(caught.value)

    def test_one_that_is_missing_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"token_path=.*nothing: cannot be read"):
            environment.use_token(str(tmp_path / "nothing"))

    def test_one_of_the_environment_turns_authentication_on(self, token, monkeypatch):
        monkeypatch.delenv("RAY_AUTH_MODE")
        environment.use_token(None)
        assert "RAY_AUTH_MODE" not in environment.os.environ
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        environment.use_token(None)
        assert environment.os.environ["RAY_AUTH_MODE"] == "token"
