"""A cluster that a run starts lets in only who has its token."""

import os
import subprocess
import sys

import pytest

JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('joined', ray.cluster_resources())"
LIMIT_S = 60


def join(address, **environment):
    return subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}],
    ids=["another-token", "no-token"],
)
def test_without_the_token_nobody_joins(address, environment):
    done = join(address, **environment)
    assert done.returncode != 0
    assert "joined" not in done.stdout
    assert "auth" in done.stderr.lower()


def test_with_the_token_a_process_joins(address):
    done = join(address)
    assert done.returncode == 0, done.stderr
    assert "joined" in done.stdout
