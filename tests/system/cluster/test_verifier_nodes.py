"""Reward functions use the processors of all nodes of a Ray cluster, and survive the loss of one."""

import json
import os
import subprocess
import sys

import pytest

from tests.system.cluster.verifier_nodes import GROUPS, ROOT, THERE

pytestmark = pytest.mark.slow

LIMIT_S = 300


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    command = [sys.executable, "-m", "tests.system.cluster.verifier_nodes", str(tmp_path_factory.mktemp("logs"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_pool_calls_processes_of_both_nodes(seen):
    assert seen["processes_there"] == [THERE]
    assert seen["errors"] == ["None"] * (1 + THERE)
    assert (seen["here"], seen["there"]) == (1, 1), "all processes of the other node belong to one actor"


def test_what_a_function_raises_on_another_node_is_the_error_of_the_call(seen):
    assert "math domain error" in seen["refused"]


def test_every_completion_is_scored_also_when_the_other_node_is_lost(seen):
    before, after = seen["scores"]
    assert before == [1.0, 0.0] * GROUPS
    assert after == [1.0, 0.0] * (len(after) // 2)
    here = min(len(os.sched_getaffinity(0)), 64)
    assert seen["processes"] == [here + THERE, here]
