"""The contract of publishes on CPU: shared memory and gloo as they are, ipc with memory of the host in place of a
GPU's, NCCL over a scripted communicator."""

import gc
import warnings

import pytest

from ray_rl.imports import USUAL, collect_as_usual, collect_less
from ray_rl.weight_sync.plugin import register

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's libraries deprecate each other's functions
    from tests.adapter_contract import *  # noqa: F403
    from tests.publish_contract import *  # noqa: F403
    from tests.scripted_nccl import OPEN, script_nccl
    from tests.transfer import Scene


@pytest.fixture(params=["shared_memory", "gloo", "ipc", "nccl"])
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


@pytest.mark.parametrize("scene", ["nccl"], indirect=True)
async def test_an_nccl_communicator_is_left_after_a_failure_and_when_all_meet_again(scene):
    world = scene()
    for _ in range(2):
        await world.join()
        assert len(OPEN) == 4, "the sender's, and one of each worker"
    world.engines[0].vllm.models[0].before_load = failing_at("layers.0.down.bias")  # noqa: F405
    with pytest.raises(WeightSyncError):  # noqa: F405
        await world.publish(1)
    assert 1 not in {communicator.rank for communicator in OPEN}, "the engine that failed"


def test_the_plugin_ends_the_quick_imports_of_vllms_processes():
    collect_less()
    try:
        register()
        assert gc.get_threshold() == USUAL
    finally:
        collect_as_usual()
