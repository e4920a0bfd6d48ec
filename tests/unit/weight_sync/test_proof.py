"""What the proof of a publish sees, and that it sees it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.errors import WeightMismatch
from ray_rl.weight_sync import proof
from ray_rl.weight_sync.messages import merged
from ray_rl.weight_sync.proof import Arrivals, digest, require_equal, word_sums

WEIGHTS = {"a": torch.arange(10, dtype=torch.float32), "b": torch.ones(3, 4), "c": torch.zeros(1)}
PARTS = {"a": 4, "b": 6, "c": 1}


def arrivals(weights=None, parts=None):
    found = Arrivals()
    found.add((WEIGHTS if weights is None else weights).items(), PARTS if parts is None else parts)
    return found


def sent_by_two_ranks():
    """Slices as ZeRO-3 has them; the second rank has nothing of the last parameter."""
    a, b, c = (WEIGHTS[name].view(-1) for name in "abc")
    first = {"a": {0: digest(a[:4])}, "b": {0: digest(b[:6])}, "c": {0: digest(c)}}
    second = {"a": {4: digest(a[4:8]), 8: digest(a[8:])}, "b": {6: digest(b[6:])}}
    return [first, second]


def bytes_of(words):
    return torch.tensor(words, dtype=torch.int64).to(torch.uint32).view(torch.uint8)


def flipped(tensor, byte, bit):
    other = tensor.clone()
    other.view(-1).view(torch.uint8)[byte] ^= 1 << bit
    return other


def test_parts_that_the_ranks_digested_are_those_that_an_engine_digests():
    arrivals().prove(merged(sent_by_two_ranks()))


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(WEIGHTS)), place=st.integers(0, 47), bit=st.integers(0, 7))
def test_any_flipped_bit_is_seen_and_its_parameter_named(name, place, bit):
    wrong = flipped(WEIGHTS[name], place % (WEIGHTS[name].numel() * 4), bit)
    with pytest.raises(WeightMismatch, match=rf"from those that were sent: 1 of 3 parameters differ, 0 .* \({name}\)"):
        arrivals(WEIGHTS | {name: wrong}).prove(merged(sent_by_two_ranks()))


def test_what_never_came_is_seen():
    left = {name: tensor for name, tensor in WEIGHTS.items() if name != "b"}
    with pytest.raises(WeightMismatch, match=r"1 of 3 parameters differ, 1 did not arrive \(b\)"):
        arrivals(left).prove(merged(sent_by_two_ranks()))


def test_an_engine_that_got_nothing_proves_nothing():
    with pytest.raises(WeightMismatch, match="3 of 3 parameters differ, 3 did not arrive"):
        Arrivals().prove(merged(sent_by_two_ranks()))


def test_what_arrived_in_the_update_before_proves_nothing():
    found = arrivals()
    found.begin()
    with pytest.raises(WeightMismatch, match="3 did not arrive"):
        found.prove(merged(sent_by_two_ranks()))


def test_what_came_twice_is_seen():
    found = arrivals()
    found.add([("c", WEIGHTS["c"])], PARTS)
    with pytest.raises(WeightMismatch, match=r"\(c\)"):
        found.prove(merged(sent_by_two_ranks()))


def test_what_was_never_sent_is_seen():
    sent = [{name: parts for name, parts in digests.items() if name != "c"} for digests in sent_by_two_ranks()]
    with pytest.raises(WeightMismatch, match=r"1 of 2 parameters differ, 0 did not arrive \(c\)"):
        arrivals().prove(merged(sent))


def test_a_rank_that_said_nothing_leaves_bytes_unproved():
    with pytest.raises(WeightMismatch, match=r"2 of 3 parameters differ, .* \(a, b\)"):
        arrivals().prove(merged(sent_by_two_ranks()[:1]))


def test_nothing_sent_is_no_proof():
    with pytest.raises(WeightMismatch):
        require_equal({}, {})


@pytest.mark.parametrize("sums", [digest, word_sums], ids=["cpu", "gpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_is_of_the_bytes_in_their_order(sums, dtype):
    values = torch.tensor([1.0, 2.0, 3.0, -4.0, 0.5], dtype=dtype)  # of bfloat16, not a whole number of words
    flat = values.view(torch.uint8)
    assert sums(flat) == sums(flat.clone())
    assert sums(flat) != sums(values[[1, 0, 2, 3, 4]].view(torch.uint8))
    assert sums(flat) != sums(flat[:-2])


def test_the_sums_of_gpus_are_the_two_sums_over_words_whatever_the_chunk(monkeypatch):
    words = [7, 2**32 - 1, 0, 2**31, 5]
    flat = bytes_of(words)
    total = sum(words) % 2**64
    weighted = sum((2 * i + 1) * word for i, word in enumerate(words)) % 2**64
    for chunk in (1, 2, 3, 100):
        monkeypatch.setattr(proof, "CHUNK_WORDS", chunk)
        assert word_sums(flat) == f"{total:016x}{weighted:016x}"


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), data=st.data())
def test_the_weighted_sum_of_gpus_sees_every_change_of_a_single_word(words, data):
    index = data.draw(st.integers(0, len(words) - 1))
    other = data.draw(st.integers(0, 2**32 - 1).filter(lambda word: word != words[index]))
    changed = [*words[:index], other, *words[index + 1 :]]
    assert word_sums(bytes_of(words)) != word_sums(bytes_of(changed))
