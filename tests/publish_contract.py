"""What every sender and receiver must do, whatever carries the weights. `scene` is made by the folder that runs it."""

import asyncio
import threading
import time

import pytest

from ray_rl.errors import ClusterError, WeightMismatch, WeightSyncError, WorkerLost
from ray_rl.metrics.metric import Last, Total
from ray_rl.rollout.receiver import MISMATCH, NOT_SERVED
from ray_rl.weight_sync.proof import digest
from ray_rl.weight_sync.receivers.loading import Loading
from tests.scripted_lora import ADAPTER
from tests.transfer import drop, flip, repeat
from tests.transfer_parts import CAPACITY_BYTES, FROZEN, LIMIT_S, SHAPES, wire_bytes

BROADCASTS = {
    # A parameter that does not fit into a bucket begins another: 96 + 14 + 210 + 2, and 666 behind them.
    "gloo": [992, 3072, 322, 666, 30],
    # One word for each bucket.
    "shared_memory": [1, 1, 1, 1, 1],
    "ipc": [1, 1, 1, 1, 1],
    # vLLM packs until a buffer is over its capacity: 96 + 14 + 210 + 2 + 666.
    "nccl": [992, 3072, 988, 30],
}
"""Bytes of each collective of a publish of all parameters, in their order."""
TRAINED = [name for name in SHAPES if name not in FROZEN]

LAYOUTS = pytest.mark.parametrize(
    ("ranks", "is_sharded"), [(1, False), (2, False), (3, True)], ids=["one-rank", "two-ranks", "three-ranks-of-zero-3"]
)


@LAYOUTS
async def test_every_engine_serves_every_parameter_bit_for_bit_publish_after_publish(scene, ranks, is_sharded):
    await require_three_versions(scene(ranks=ranks, is_sharded=is_sharded))


async def require_three_versions(world):
    await world.join()
    for version in (1, 2, 3):
        metrics = await world.publish(version)
        world.require_served(version)
        sent, speed = metrics
        assert sent == Total("sync/bytes", wire_bytes(SHAPES if version == 1 else TRAINED))
        assert isinstance(speed, Last)
        assert speed.name == "sync/gb_per_s"
        world.trainer.learn(seed=version)
        assert not any(model.holds(world.trainer.values) for model in world.models)


async def test_all_take_part_in_the_same_broadcasts_in_the_same_order(scene):
    world = scene()
    await world.join()
    await world.publish(1)
    expected = BROADCASTS[world.transport]
    assert world.sizes == dict.fromkeys(["actor-0", "rollout-0/0", "rollout-1/0", "rollout-1/1"], expected)
    largest = max(wire_bytes([name]) for name in SHAPES)
    assert max(expected) <= CAPACITY_BYTES + largest, "memory that a bucket takes at most"


async def test_the_digests_are_those_of_the_values_that_are_sent(scene):
    world = scene(ranks=1, is_sharded=False)
    await world.join()
    taken = []
    world.trainer.send_weights = keeping(world.trainer.send_weights, taken)
    await world.publish(1)
    (sent,) = taken
    device = world.trainer.device if world.transport == "nccl" else "cpu"
    values = world.trainer.values.items()
    assert sent.digests == {name: {0: digest(value.bfloat16().to(device))} for name, value in values}


def keeping(call, taken):
    async def kept():
        taken.append(await call())
        return taken[-1]

    return kept


async def test_what_training_does_not_change_is_sent_to_engines_that_have_just_joined_and_not_again(scene):
    world = scene()
    for version in (1, 3):
        await world.join()
        assert (await world.trainer.announce())["names"] == list(SHAPES)
        await world.publish(version)
        announced = await world.trainer.announce()
        assert announced["names"] == TRAINED
        assert [tuple(shape) for shape in announced["shapes"]] == [SHAPES[name] for name in TRAINED]
        assert len(announced["parts"]) == len(TRAINED)
        world.trainer.learn(seed=version)
        await world.publish(version + 1)
        world.require_served(version + 1)


@pytest.mark.parametrize(
    ("harm", "missing"), [(flip, 0), (drop, 1), (repeat, 0)], ids=["bit-flipped", "never-came", "came-twice"]
)
async def test_an_engine_that_received_something_else_is_named_and_nobody_serves_until_all_is_sent_again(
    scene, harm, missing
):
    world = scene()
    await world.join()
    await world.publish(1)
    world.trainer.learn(seed=1)
    world.tampering.order(harm, "rollout-1/1")
    counts = rf"1 of {len(TRAINED)} parameters differ, {missing} did not arrive \({TRAINED[0]}\)"
    complaint = rf"publishing version 2 failed while verifying the weights: rollout-1: {MISMATCH}: {counts}$"
    with pytest.raises(WeightMismatch, match=complaint):
        await world.publish(2)
    assert world.serving() == []
    assert [engine.vllm.version for engine in world.engines] == ["1", "1"]
    await world.recover()
    await world.publish(2)
    world.require_served(2)


async def test_an_engine_that_reports_another_version_is_named_and_nobody_serves(scene):
    world = scene()
    await world.join()
    world.engines[1].vllm.reports = "6"
    with pytest.raises(WeightSyncError, match="after publishing version 7: rollout-1 reports 6; no engine was"):
        await world.publish(7)
    assert world.serving() == []


async def test_an_engine_that_fails_to_load_ends_the_publish_and_after_meeting_again_all_is_well(scene):
    world = scene()
    await world.join()
    await world.publish(1)
    world.trainer.learn(seed=1)
    world.engines[0].vllm.models[0].before_load = failing_at("layers.1.norm.weight")
    start_s = time.monotonic()
    with pytest.raises(
        WeightSyncError, match=r"publishing version 2 failed while sending and receiving: .*rollout-0: .*no memory"
    ):
        await world.publish(2)
    assert time.monotonic() - start_s < LIMIT_S / 2
    assert world.serving() == []
    assert world.trainer.is_idle(), "no rank waits for another in its gather"
    await world.recover()
    await world.publish(2)
    world.require_served(2)


def failing_at(name):
    """Fails once."""
    left = [name]

    def before_load(names):
        if left and left[0] in names:
            left.clear()
            raise RuntimeError("no memory")

    return before_load


async def test_an_engine_that_does_not_go_on_is_named_when_the_time_is_up(scene):
    world = scene()
    await world.join()
    await world.publish(1)  # which imports what publishes need: a second has to be enough for the next
    released = threading.Event()
    world.engines[1].vllm.models[0].before_load = lambda names: released.wait(LIMIT_S)
    try:
        with pytest.raises(
            WeightSyncError, match=r"publishing version 2 failed while .*rollout-1.* did not finish within .*=1;"
        ):
            await asyncio.wait_for(world.publish(2, timeout_s=1.0), LIMIT_S / 2)
        assert world.serving() == []
    finally:
        released.set()
        await world.trainer.idle()  # a rank still in a collective would take the place of one of the next test


async def test_a_trainer_that_is_lost_fails_every_engine_and_a_new_one_can_meet_them(scene):
    world = scene(ranks=1, is_sharded=False)
    await world.join()
    await world.publish(1)
    world.trainer.learn(seed=1)
    world.trainer.dies_at = "layers.1.norm.weight"
    start_s = time.monotonic()
    with pytest.raises(WorkerLost):
        await world.publish(2)
    assert time.monotonic() - start_s < LIMIT_S / 2
    assert world.serving() == []
    assert not any(engine.vllm.is_updating for engine in world.engines), "none waits for the rest"
    world.trainer.start(world.transport)
    await world.recover()
    await world.publish(2)
    world.require_served(2)


async def test_senders_that_have_left_send_nothing_and_no_rank_waits_for_another(scene):
    world = scene()
    await world.join()
    await world.publish(1)
    for sender in world.trainer.senders:
        sender.close()
    with pytest.raises(WeightSyncError, match="join the engines again before publishing"):
        await asyncio.wait_for(world.trainer.send_weights(), LIMIT_S / 2)
    await world.join()
    await world.publish(2)
    world.require_served(2)


async def test_a_sender_whose_engines_have_left_closes_and_no_rank_waits_for_another(scene):
    world = scene()
    await world.join()
    await world.publish(1)
    for engine in world.engines:
        engine.vllm.leave()
    with pytest.raises(WeightSyncError, match="sending weights failed"):
        for _ in range(200):  # words fit in a socket's buffer, so that the first publishes may not notice
            await asyncio.wait_for(world.trainer.send_weights(), LIMIT_S / 2)
    assert world.trainer.is_idle()
    with pytest.raises(WeightSyncError, match="join the engines again before publishing"):
        await asyncio.wait_for(world.trainer.send_weights(), LIMIT_S / 2)
    await world.join()
    await world.publish(2)
    world.require_served(2)


async def test_an_engine_that_has_met_nobody_receives_nothing(scene):
    world = scene()
    update_info = await world.trainer.announce()
    for engine in world.engines:
        await engine.begin_update()
        with pytest.raises(ClusterError, match=f"{engine.name}: .*(before this engine joined|not initialized)"):
            await engine.receive_weights(update_info)
    with pytest.raises(WeightSyncError, match="join the engines again before publishing"):
        await world.trainer.send_weights()


@pytest.mark.parametrize(("ranks", "is_sharded"), [(1, False), (3, True)], ids=["one-rank", "three-ranks-of-zero-3"])
async def test_an_adapter_is_served_publish_after_publish_and_the_model_is_sent_once(scene, ranks, is_sharded):
    world = scene(ranks=ranks, is_sharded=is_sharded, has_adapter=True)
    await world.join()
    for version in (1, 2, 3):
        sent, _ = await world.publish(version)
        world.require_served(version)
        names = world.trainer.shapes if version == 1 else ADAPTER
        assert sent == Total("sync/bytes", wire_bytes(names, world.trainer.shapes))
        world.trainer.learn(seed=version)
        assert not world.hold(world.trainer.values)


async def test_an_adapter_that_changed_on_its_way_is_served_by_nobody_until_it_is_sent_again(scene):
    world = scene(has_adapter=True)
    await world.join()
    await world.publish(1)
    world.trainer.learn(seed=1)
    world.tampering.order(flip, "rollout-1/1")
    with pytest.raises(WeightMismatch, match=rf"rollout-1: {MISMATCH}: 1 of {len(ADAPTER)} parameters differ, 0 did"):
        await world.publish(2)
    assert world.serving() == []
    await world.recover()
    await world.publish(2)
    world.require_served(2)


async def test_an_adapter_that_vllm_keeps_is_served_by_nobody(scene, monkeypatch):
    """vLLM keeps an adapter whose number it knows; one worker of an engine does here."""
    world = scene(has_adapter=True)
    await world.join()
    await world.publish(1)
    world.trainer.learn(seed=1)
    stale = world.engines[1].vllm.managers[1]
    monkeypatch.setattr(stale, "remove_all_adapters", lambda: None)
    monkeypatch.setattr(stale, "remove_adapter", lambda number: False)
    with pytest.raises(WeightMismatch, match=rf"committing: rollout-1: {NOT_SERVED}: 6 of 6 matrices differ"):
        await world.publish(2)
    assert world.serving() == []
    assert world.engines[1].vllm.version == "1"


async def test_an_engine_that_keeps_keys_and_values_of_older_weights_serves_nothing(scene):
    world = scene()
    await world.join()
    world.engines[0].vllm.keeps_cache = True
    with pytest.raises(WeightSyncError, match="while committing: rollout-0: vLLM still has keys and values of older"):
        await world.publish(1)
    assert world.serving() == []


async def test_an_engine_without_adapters_refuses_one(scene):
    world = scene(has_adapter=True)
    for engine in world.engines:
        for worker in engine.vllm._workers:
            worker.loading = Loading(takes_adapter=False)
    await world.join()
    with pytest.raises(WeightSyncError, match="sent an adapter to an engine that serves none"):
        await world.publish(1)
    assert world.serving() == []
