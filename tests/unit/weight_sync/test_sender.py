"""The sending end against receivers in threads, over real gloo sockets."""

import socket
import time

import pytest
import torch

from ray_rl.errors import WeightSyncError
from ray_rl.metrics.metric import Last, Total
from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync.messages import Rendezvous, Sent
from ray_rl.weight_sync.proof import digest
from ray_rl.weight_sync.senders.sender import GlooSender
from tests.weight_listener import WeightListener

CAPACITY_BYTES = 1024
FROZEN = 2
"""Parameters from the first on that training does not change."""
SHAPES = [(30, 16), (16,), (16, 16), (48, 32), (16,), (700,), (3, 5, 7)]


class Stream:
    """Parameters in groups of two, as a trainer's stream gives them: on rank 0, from memory that is used again."""

    def __init__(self, *, is_first=True):
        generator = torch.Generator().manual_seed(0)
        self.values = [torch.randn(shape, generator=generator) for shape in SHAPES]
        self.specs = [ParameterSpec(f"w{i}", "float32", shape) for i, shape in enumerate(SHAPES)]
        self.trained_specs = self.specs[FROZEN:]
        self.gathered = 0
        self._is_first = is_first

    def groups(self, specs):
        memory = torch.empty(4096)
        pairs = [pair for pair in zip(self.specs, self.values, strict=True) if pair[0] in specs]
        for start in range(0, len(pairs), 2):
            group, offset = [], 0
            for spec, value in pairs[start : start + 2]:
                view = memory[offset : offset + value.numel()].view(value.shape).copy_(value)
                offset += value.numel()
                group.append((spec, view if self._is_first else None))
            yield group
            memory.fill_(float("nan"))
            self.gathered += 1


@pytest.fixture
def meet():
    def make(*, engines, timeout_s=20.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return Rendezvous("127.0.0.1", port, 1 + engines, CAPACITY_BYTES, timeout_s, segment="")

    return make


def joined(rendezvous, stream):
    sender = GlooSender(stream, is_sender=True)
    sender.join(rendezvous)
    return sender


def test_every_receiver_gets_every_parameter_bit_for_bit_publish_after_publish(meet):
    rendezvous, stream = meet(engines=2), Stream()
    receivers = [WeightListener(rendezvous, rank, stream.specs) for rank in (1, 2)]
    sender = joined(rendezvous, stream)
    publish = sender.send()
    for receiver in receivers:
        receiver.join(20)
        assert receiver.error is None
        assert list(receiver.received) == [spec.name for spec in stream.specs]
        for spec, value in zip(stream.specs, stream.values, strict=True):
            assert torch.equal(receiver.received[spec.name], value)
        assert publish.digests[spec.name] == {0: digest(value)}
    sent, speed = publish.metrics
    assert sent == Total("sync/bytes", sum(value.numel() * 4 for value in stream.values))
    assert isinstance(speed, Last)
    assert speed.name == "sync/gb_per_s"


def test_what_is_announced_is_what_is_sent_in_its_order():
    stream = Stream()
    announced = GlooSender(stream, is_sender=True).announce()
    assert announced["names"] == [f"w{i}" for i in range(len(SHAPES))]
    assert [tuple(shape) for shape in announced["shapes"]] == SHAPES
    assert set(announced["dtype_names"]) == {"float32"}


def test_the_other_ranks_only_take_part_in_the_gather(meet):
    stream = Stream(is_first=False)
    sender = GlooSender(stream, is_sender=False)
    sender.join(meet(engines=1))
    assert sender.send() == Sent([], {})
    assert stream.gathered == 4


def test_an_engine_that_never_comes_is_an_error_within_the_limit(meet):
    rendezvous = meet(engines=2, timeout_s=1.0)
    start_s = time.monotonic()
    with pytest.raises(WeightSyncError, match=r"rank 0 of 3 .* did not meet the others at 127.0.0.1:.* within .*=1"):
        joined(rendezvous, Stream())
    assert time.monotonic() - start_s < 15


def test_an_engine_that_stops_receiving_is_an_error_within_the_limit_and_the_gather_is_seen_through(meet):
    rendezvous, stream = meet(engines=1, timeout_s=2.0), Stream()
    receiver = WeightListener(rendezvous, 1, stream.specs, stalls=True)
    sender = joined(rendezvous, stream)
    start_s = time.monotonic()
    with pytest.raises(WeightSyncError, match="sending weights failed"):
        sender.send()
    assert time.monotonic() - start_s < 15
    assert stream.gathered == 4
    receiver.release()


def test_an_engine_that_goes_away_fails_sender_and_other_engines_long_before_the_limit(meet):
    rendezvous, stream = meet(engines=2, timeout_s=60.0), Stream()
    leaver = WeightListener(rendezvous, 1, stream.specs, stops_after=1)
    stayer = WeightListener(rendezvous, 2, stream.specs)
    sender = joined(rendezvous, stream)
    start_s = time.monotonic()
    with pytest.raises(WeightSyncError, match="sending weights failed"):
        sender.send()
    assert time.monotonic() - start_s < 20
    assert stream.gathered == 4
    stayer.join(20)
    leaver.join(20)
    assert stayer.error is not None
    assert stayer.took_s < 20


def test_after_a_failure_nothing_is_sent_before_the_engines_are_joined_again_and_the_gather_is_seen_through(meet):
    stream = Stream()
    sender = GlooSender(stream, is_sender=True)
    with pytest.raises(WeightSyncError, match="join the engines again"):
        sender.send()
    assert stream.gathered == 4

    rendezvous = meet(engines=1)
    receiver = WeightListener(rendezvous, 1, stream.specs)
    sender.join(rendezvous)
    sender.send()
    receiver.join(20)
    assert len(receiver.received) == len(SHAPES)


def test_what_training_does_not_change_is_sent_to_engines_that_have_just_joined_and_not_again(meet):
    stream = Stream()
    sender = GlooSender(stream, is_sender=True)
    for _ in range(2):
        rendezvous = meet(engines=1)
        whole = WeightListener(rendezvous, 1, stream.specs)
        sender.join(rendezvous)
        assert sender.announce()["names"] == [spec.name for spec in stream.specs]
        assert list(sender.send().digests) == [spec.name for spec in stream.specs]
        whole.join(20)
        assert len(whole.received) == len(SHAPES)
        assert sender.announce()["names"] == [spec.name for spec in stream.trained_specs]
        assert len(sender.announce()["parts"]) == len(SHAPES) - FROZEN


def test_a_rank_that_does_not_send_gathers_what_the_sender_sends(meet):
    stream = Stream(is_first=False)
    sender = GlooSender(stream, is_sender=False)
    sender.join(meet(engines=1))
    sender.send()
    assert stream.gathered == 4
    sender.send()
    assert stream.gathered == 4 + 3
    sender.join(meet(engines=1))
    sender.send()
    assert stream.gathered == 4 + 3 + 4
