"""A publish over NCCL from one GPU to another: the smallest that there is."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's libraries deprecate each other's functions
    from tests.publish_contract import require_three_versions
    from tests.transfer import Scene

pytestmark = pytest.mark.gpu(2)


@pytest.mark.parametrize(("ranks", "is_sharded"), [(1, False), (3, True)], ids=["one-rank", "three-ranks-of-zero-3"])
async def test_an_engine_on_another_gpu_serves_every_parameter_bit_for_bit(monkeypatch, ranks, is_sharded):
    devices = ("cuda:0", ("cuda:1",))
    world = Scene("nccl", monkeypatch=monkeypatch, ranks=ranks, is_sharded=is_sharded, devices=devices)
    try:
        await require_three_versions(world)
    finally:
        world.close()
