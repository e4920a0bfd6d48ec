"""A cluster that a run starts lets in only who has its token."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('joined', ray.cluster_resources())"
LIMIT_S = 90
WHO = {
    "with the token": {},
    "with another": {"RAY_AUTH_TOKEN": "0" * 64},
    "without": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
}


@dataclass(frozen=True)
class Attempt:
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def attempts(address: str) -> dict[str, Attempt]:
    """All at the same time: Ray tries for 20 seconds before it gives up."""
    command = [sys.executable, "-c", JOIN, address]
    processes = {
        who: subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for who, environment in WHO.items()
    }
    try:
        said = {who: process.communicate(timeout=LIMIT_S) for who, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    return {who: Attempt(processes[who].returncode, *said[who]) for who in WHO}


@pytest.mark.parametrize("who", ["with another", "without"])
def test_without_the_token_nobody_joins(attempts, who):
    attempt = attempts[who]
    assert attempt.code != 0
    assert "joined" not in attempt.stdout
    assert "auth" in attempt.stderr.lower()


def test_with_the_token_a_process_joins(attempts):
    assert attempts["with the token"].code == 0, attempts["with the token"].stderr
    assert "joined" in attempts["with the token"].stdout
