import multiprocessing
import os
import socket
import sys
from types import SimpleNamespace

import pytest

from ray_rl.rollout.forked_core import forked_core

LIMIT_S = 30


@pytest.fixture
def utils(monkeypatch):
    """vLLM's module that starts its process."""
    utils = SimpleNamespace(get_mp_context=lambda: multiprocessing.get_context("spawn"))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(utils=utils))
    return utils


def test_vllm_forks_within_the_block_alone(utils):
    spawns = utils.get_mp_context
    with forked_core(lambda: None):
        context = utils.get_mp_context()
        assert context.get_start_method() == "fork"
    assert utils.get_mp_context is spawns


def test_a_fork_leaves_the_worker_before_it_does_anything_else(utils):
    done = []

    def end():
        sys.exit(3 if done == ["left"] else 4)

    with forked_core(lambda: done.append("left")):
        process = utils.get_mp_context().Process(target=end)
        process.start()
    process.join(LIMIT_S)
    assert process.exitcode == 3
    assert done == [], "in the fork alone"


def test_a_connection_of_the_worker_is_closed_with_the_worker_although_its_fork_lives(utils):
    ours, peer = socket.socketpair()
    waits, ends = os.pipe()

    def live():
        os.close(ends)
        os.read(waits, 1)
        sys.exit(3)

    with forked_core(lambda: None):
        process = utils.get_mp_context().Process(target=live)
        process.start()
    os.close(waits)
    ours.close()
    peer.settimeout(LIMIT_S)
    try:
        assert peer.recv(1) == b"", "the other side learns that the worker has closed it"
        assert process.is_alive()
    finally:
        os.close(ends)
        process.join(LIMIT_S)
        peer.close()
    assert process.exitcode == 3
