"""The contract of publishes with weights on GPUs: gloo on one, NCCL itself on four."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's libraries deprecate each other's functions
    from tests.publish_contract import *  # noqa: F403
    from tests.transfer import Scene

DEVICES = {
    "gloo": ("cuda:0", ("cuda:0",), ("cuda:0", "cuda:0")),
    "nccl": ("cuda:0", ("cuda:1",), ("cuda:2", "cuda:3")),
}


@pytest.fixture(params=[pytest.param("gloo", marks=pytest.mark.gpu(1)), pytest.param("nccl", marks=pytest.mark.gpu(4))])
def scene(request, monkeypatch):
    """Makes the trainer and the engines of a test."""
    made = []

    def make(**layout):
        made.append(Scene(request.param, monkeypatch=monkeypatch, devices=DEVICES[request.param], **layout))
        return made[-1]

    yield make
    for each in made:
        each.close()
