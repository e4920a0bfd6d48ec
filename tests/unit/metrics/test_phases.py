import threading
import time

import pytest

from ray_rl.metrics.phases import Heartbeat, Phases


@pytest.fixture
def ended():
    return []


@pytest.fixture
def phases(clock, ended):
    return Phases(clock, ended=lambda span, end_s: ended.append((span.name, span.start_s, end_s)))


def test_the_time_of_a_step_divides_into_its_phases(phases, clock, ended):
    for name, seconds in [("rollout", 6.0), ("train", 7.0), ("rollout", 1.0)]:
        with phases.phase(name):
            clock.pass_s(seconds)
    clock.pass_s(0.5)
    assert phases.end_step() == (14.5, {"rollout": 7.0, "train": 7.0})
    assert ended == [("rollout", 100, 106), ("train", 106, 113), ("rollout", 113, 114)]


def test_a_step_begins_where_the_last_ended(phases, clock):
    with phases.phase("train"):
        clock.pass_s(1.0)
    phases.end_step()
    clock.pass_s(2.0)
    with phases.phase("train"):
        clock.pass_s(3.0)
    assert phases.end_step() == (5.0, {"train": 3.0})


def test_starting_belongs_to_no_step(phases, clock):
    clock.pass_s(10.0)
    with phases.phase("start"):
        clock.pass_s(50.0)
        assert not phases.in_step
    with phases.phase("rollout"):
        clock.pass_s(2.0)
        assert phases.in_step
    assert phases.end_step() == (2.0, {"rollout": 2.0})


def test_a_phase_that_raises_is_timed_too(phases, clock, ended):
    with pytest.raises(KeyError), phases.phase("train"):
        clock.pass_s(1.0)
        raise KeyError
    assert ended == [("train", 100, 101)]
    assert phases.current() is None


def test_of_overlapping_phases_the_one_opened_last_is_current(phases):
    first, second = phases.phase("rollout"), phases.phase("train")
    first.__enter__()
    second.__enter__()
    assert phases.current().name == "train"
    first.__exit__(None, None, None)
    assert phases.current().name == "train"
    second.__exit__(None, None, None)


def test_a_note_is_the_detail_of_the_current_phase_and_goes_with_it(phases):
    with phases.phase("rollout"):
        assert not phases.note("12 of 64 completions")
        assert phases.current().detail == "12 of 64 completions"
    with phases.phase("train"):
        assert phases.current().detail == ""


def test_outside_of_phases_and_while_starting_a_note_is_news(phases):
    assert phases.note("starting Ray")
    assert phases.current().doing == "starting Ray"
    with phases.phase("start"):
        assert phases.note("loading 1 engine")


def test_a_beat_is_due_each_time_the_age_passes_the_period(phases, clock):
    said = []
    heart = Heartbeat(phases.current, lambda span, age_s: said.append((span.doing, age_s)), every_s=30, clock=clock)
    heart.tick()
    with phases.phase("rollout"):
        for _ in range(7):
            clock.pass_s(10)
            heart.tick()
            heart.tick()
    with phases.phase("train"):
        clock.pass_s(29)
        heart.tick()
        clock.pass_s(1)
        heart.tick()
    assert said == [("waiting for rollouts", 30), ("waiting for rollouts", 60), ("training", 30)]


def test_the_heart_beats_while_the_main_thread_is_blocked():
    heard = threading.Event()
    phases = Phases(time.monotonic, ended=lambda span, end_s: None)
    heart = Heartbeat(phases.current, lambda span, age_s: heard.set(), every_s=0.02, clock=time.monotonic)
    heart.start()
    with phases.phase("rollout"):
        assert heard.wait(10)
    heart.stop()
