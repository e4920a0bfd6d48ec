import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync.buckets import BufferRing, bucket_bytes, plan_buckets, unpack

SHAPES = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple), max_size=30)


def specs_of(shapes, dtype="float32"):
    return [ParameterSpec(f"layer.{i}", dtype, shape) for i, shape in enumerate(shapes)]


def test_consecutive_parameters_share_a_bucket_as_long_as_they_fit():
    specs = specs_of([(2,), (1,), (3,), (9,), (1,)])
    buckets = plan_buckets(specs, capacity_bytes=16)
    assert [[spec.shape for spec in bucket] for bucket in buckets] == [[(2,), (1,)], [(3,)], [(9,)], [(1,)]]
    assert [bucket_bytes(bucket) for bucket in buckets] == [12, 12, 36, 4]


def test_no_parameters_need_no_bucket():
    assert plan_buckets([], capacity_bytes=16) == []


@settings(deadline=None)
@given(shapes=SHAPES, capacity=st.integers(1, 400))
def test_every_parameter_is_in_one_bucket_in_order_and_only_a_lone_one_exceeds_the_capacity(shapes, capacity):
    specs = specs_of(shapes)
    buckets = plan_buckets(specs, capacity_bytes=capacity)
    assert [spec for bucket in buckets for spec in bucket] == specs
    assert all(bucket for bucket in buckets)
    assert all(bucket_bytes(bucket) <= capacity or len(bucket) == 1 for bucket in buckets)
    # Greedy: the first parameter of a bucket did not fit into the one before.
    for before, bucket in itertools.pairwise(buckets):
        assert bucket_bytes(before) + bucket[0].bytes > capacity


@settings(deadline=None)
@given(shapes=SHAPES, dtype=st.sampled_from(["float32", "bfloat16"]))
def test_what_is_written_into_the_views_of_one_buffer_is_read_from_those_of_its_copy(shapes, dtype):
    specs = specs_of(shapes, dtype)
    buffer = torch.zeros(bucket_bytes(specs), dtype=torch.uint8)
    values = [torch.randn(spec.shape).to(getattr(torch, dtype)) for spec in specs]
    for (_, view), value in zip(unpack(buffer, specs), values, strict=True):
        view.copy_(value)
    read = unpack(buffer.clone(), specs)
    assert [name for name, _ in read] == [spec.name for spec in specs]
    assert all(torch.equal(view, value) for (_, view), value in zip(read, values, strict=True))


def test_a_buffer_has_the_size_asked_for_and_the_memory_of_one_given_back():
    ring = BufferRing()
    first = ring.take(100)
    address = first.data_ptr()
    ring.give(first)
    second = ring.take(60)
    assert second.numel() == 60
    assert second.data_ptr() == address
    ring.give(second)
    assert ring.take(100).data_ptr() == address


def test_a_buffer_in_use_is_not_given_out_again():
    ring = BufferRing()
    first, second = ring.take(8), ring.take(8)
    assert first.data_ptr() != second.data_ptr()


def test_a_larger_one_than_those_given_back_is_new():
    ring = BufferRing()
    ring.give(ring.take(8))
    assert ring.take(16).numel() == 16


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_the_ring_keeps_at_most_three_buffers_and_the_largest(sizes):
    ring = BufferRing()
    taken = [ring.take(size) for size in sizes]
    for buffer in taken:
        ring.give(buffer)
    assert ring.take(max(sizes)).data_ptr() in {buffer.data_ptr() for buffer in taken}
    assert len(ring._free) <= 3
