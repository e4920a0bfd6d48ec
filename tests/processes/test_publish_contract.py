"""The contract of publishes on CPU: shared memory and gloo as they are, NCCL over a scripted communicator."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's libraries deprecate each other's functions
    from tests.publish_contract import *  # noqa: F403
    from tests.scripted_nccl import script_nccl
    from tests.transfer import Scene


@pytest.fixture(params=["shared_memory", "gloo", "nccl"])
def scene(request, monkeypatch):
    """Makes the trainer and the engines of a test."""
    if request.param == "nccl":
        script_nccl(monkeypatch)
    made = []

    def make(**layout):
        made.append(Scene(request.param, monkeypatch=monkeypatch, **layout))
        return made[-1]

    yield make
    for each in made:
        each.close()
