import pytest

from ray_rl.planner.decoding import Pace, decode
from ray_rl.planner.lengths import parse_lengths


def seconds(lengths, *, slots=2, prompt=0.0, pace=None):
    return decode(lengths, slots=slots, prompt=prompt, pace=pace or Pace(lambda running: 1.0, 0.0))


def test_sequences_that_start_together_take_as_long_as_the_longest():
    found = seconds([3, 10])
    assert (found.seconds, found.started) == (10, 0)


def test_a_waiting_sequence_takes_the_place_of_one_that_ends():
    found = seconds([3, 10, 4])
    assert (found.seconds, found.started) == (10, 3)
    assert seconds([10, 10, 10, 10]).seconds == 20
    assert seconds([10, 3, 20]).seconds == 23


def test_a_step_takes_as_long_as_what_runs_makes_it():
    assert seconds([4, 10], pace=Pace(lambda running: float(running), 0.0)).seconds == 4 * 2 + 6


def test_contexts_grow_while_sequences_run():
    """Two sequences of 5 + 4 tokens, then one: contexts of 10 to 18 tokens, and 9 to 15."""
    found = seconds([4, 10], prompt=5, pace=Pace(lambda running: 0.0, 1.0))
    together = 4 * 10 + 2 * 4**2 / 2
    alone = 6 * 9 + 6**2 / 2
    assert found.seconds == pytest.approx(together + alone)


def test_more_slots_are_never_slower_if_a_step_costs_the_same():
    lengths = parse_lengths("mean=300", maximum=3000).draws(500)
    times = [seconds(lengths, slots=slots).seconds for slots in (8, 32, 128, 500)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == max(lengths)
