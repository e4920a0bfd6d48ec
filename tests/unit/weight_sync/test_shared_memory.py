"""Publishes through shared memory: a real process group, and receivers that read what they are told is there."""

import resource
import socket
import threading
import time
import uuid

import pytest
import torch
import torch.distributed as dist

from ray_rl.errors import WeightSyncError
from ray_rl.metrics.metric import Total
from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync import segment as segment_module
from ray_rl.weight_sync.buckets import bucket_bytes, plan_buckets, unpack
from ray_rl.weight_sync.gloo_group import GlooGroup
from ray_rl.weight_sync.messages import Rendezvous
from ray_rl.weight_sync.segment import Segment
from ray_rl.weight_sync.senders.shared_memory import SharedMemorySender

CAPACITY_BYTES = 1024
SHAPES = [(30, 16), (16,), (16, 16), (48, 32), (16,), (700,), (3, 5, 7)]

pytestmark = pytest.mark.skipif(not segment_module.SHARED.is_dir(), reason="this system has no /dev/shm")


@pytest.fixture(scope="module", autouse=True)
def alone():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Stream:
    """Parameters that a rank holds whole."""

    def __init__(self):
        self.values = [torch.randn(shape) for shape in SHAPES]
        self.specs = [ParameterSpec(f"w{i}", "float32", shape) for i, shape in enumerate(SHAPES)]
        self.trained_specs = self.specs
        self.written = 0

    def slices(self, specs):
        assert specs == self.specs
        for value in self.values:
            self.written += 1
            yield 0, value.view(-1)


class Listener(threading.Thread):
    """In place of an engine: after each word it copies the bucket. Leaves after `stops_after` words."""

    def __init__(self, rendezvous, rank, specs, *, stops_after=None):
        super().__init__(daemon=True)
        self.received, self.error = {}, None
        self._there, self._rank, self._specs, self._stops_after = rendezvous, rank, specs, stops_after
        self.start()

    def run(self):
        there = self._there
        group = GlooGroup(
            address=there.address, port=there.port, rank=self._rank, world=there.world, timeout_s=there.timeout_s
        )
        memory = Segment.attach(there.segment, timeout_s=there.timeout_s)
        offset = 0
        try:
            for i, bucket in enumerate(plan_buckets(self._specs, capacity_bytes=there.capacity_bytes)):
                if i == self._stops_after:
                    return
                group.broadcast(torch.zeros(1, dtype=torch.uint8)).wait()
                views = unpack(memory.buffer[offset : offset + bucket_bytes(bucket)], bucket)
                self.received |= {name: view.clone() for name, view in views}
                offset += bucket_bytes(bucket)
        except RuntimeError as error:
            self.error = error
        finally:
            del group


@pytest.fixture
def meet():
    def make(*, engines, timeout_s=20.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return Rendezvous("127.0.0.1", port, 1 + engines, CAPACITY_BYTES, timeout_s, f"ray_rl-test-{uuid.uuid4().hex}")

    return make


def test_every_receiver_finds_every_parameter_bit_for_bit_publish_after_publish(meet):
    rendezvous, stream = meet(engines=2), Stream()
    sender = SharedMemorySender(stream, is_sender=True)
    for _ in range(2):
        stream.values = [torch.randn(shape) for shape in SHAPES]
        receivers = [Listener(rendezvous, rank, stream.specs) for rank in (1, 2)]
        sender.join(rendezvous)
        sent, speed = sender.send().metrics
        for receiver in receivers:
            receiver.join(20)
            assert receiver.error is None
            for spec, value in zip(stream.specs, stream.values, strict=True):
                assert torch.equal(receiver.received[spec.name], value)
        assert sent == Total("sync/bytes", sum(value.numel() * 4 for value in stream.values))
        assert speed.name == "sync/gb_per_s"
        rendezvous = meet(engines=2)


def test_the_memory_has_no_name_left_after_the_first_publish(meet):
    rendezvous, stream = meet(engines=1), Stream()
    receiver = Listener(rendezvous, 1, stream.specs)
    sender = SharedMemorySender(stream, is_sender=True)
    sender.join(rendezvous)
    assert (segment_module.SHARED / rendezvous.segment).exists()
    sender.send()
    receiver.join(20)
    assert not (segment_module.SHARED / rendezvous.segment).exists()


def test_an_engine_that_goes_away_is_an_error_long_before_the_limit_and_the_name_is_gone(meet):
    rendezvous, stream = meet(engines=1, timeout_s=60.0), Stream()
    receiver = Listener(rendezvous, 1, stream.specs, stops_after=1)
    sender = SharedMemorySender(stream, is_sender=True)
    sender.join(rendezvous)
    start_s = time.monotonic()
    with pytest.raises(WeightSyncError, match="sending weights failed"):
        for _ in range(100):  # words fit in a socket's buffer, so that the first publish may not notice
            sender.send()
    assert time.monotonic() - start_s < 20
    receiver.join(20)
    assert not (segment_module.SHARED / rendezvous.segment).exists()
    stream.written = 0
    with pytest.raises(WeightSyncError, match="join the engines again"):
        sender.send()
    # The other ranks, which do not know, wait at a barrier a bucket.
    assert stream.written == len(SHAPES)


def test_memory_that_never_comes_is_an_error_that_names_the_way_out():
    with pytest.raises(WeightSyncError, match=r"within weight_sync\.timeout_s=0\.2: .* set weight_sync\.backend=gloo"):
        Segment.attach("ray_rl-test-nobody", timeout_s=0.2)


def test_too_little_memory_is_an_error_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(segment_module, "SHARED", tmp_path)
    # A limit for this process: to ask for more than the disk has would fill it, for everybody, until that fails.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(WeightSyncError, match=r"needs 2 MiB of shared memory, and .* set weight_sync.backend=gloo"):
            Segment.create("too-large", 2**21)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
