"""Real processes: a parent, its child, and others that must not be touched."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from ray_rl.cluster.processes import end_all, family_of

PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent():
    """A process with one child."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    yield process
    for member in family:
        if member.is_running():
            member.kill()
    process.wait(10)
    process.stdout.close()


def test_a_family_is_the_process_and_all_that_descend_from_it(parent):
    family = family_of(parent.pid, node="n")
    assert family.node == "n"
    assert family.members[0].pid == parent.pid
    assert len(family.members) == 2


def test_all_are_ended_although_they_are_stopped(parent):
    members = family_of(parent.pid, node="n").members
    for member in members:
        os.kill(member.pid, signal.SIGSTOP)
    assert end_all(members, timeout_s=10) == []
    assert parent.wait(10) == -signal.SIGKILL


def test_what_the_parent_left_behind_when_it_was_killed_is_ended_too(parent):
    members = family_of(parent.pid, node="n").members
    parent.kill()
    parent.wait(10)
    child = psutil.Process(members[1].pid)
    assert end_all(members, timeout_s=10) == []
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_that_came_later_is_ended_with_its_parent(parent):
    child = psutil.Process(parent.pid).children()[0]
    assert end_all(family_of(parent.pid, node="n").members[:1], timeout_s=10) == []
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_later_process_of_the_same_number_is_left_alone(parent):
    earlier = replace(family_of(parent.pid, node="n").members[0], created_s=time.time() - 3600)
    assert end_all([earlier], timeout_s=10) == []
    assert parent.poll() is None
