"""Admission and batches without engines, tasks or time."""

import pytest

from ray_rl.metrics.metric import Last, Mean
from ray_rl.rollout.collected import Finished
from ray_rl.rollout.schedule import Schedule, ScheduleSettings
from ray_rl.types import Prompt, RolloutGroup
from tests.make import rollout


def started(count, **settings):
    """A schedule that has admitted so many prompts."""
    schedule = Schedule(ScheduleSettings(**{"prompts_per_step": 2} | settings))
    numbers = [schedule.admit(Prompt(f"p/{index}", (1,), "?")) for index in range(count)]
    assert numbers == list(range(count))
    return schedule


def finish(schedule, *numbers, rewards=(1.0, 0.0)):
    for number in numbers:
        group = RolloutGroup(schedule.in_flight[number], [rollout(reward=reward) for reward in rewards])
        schedule.finish(Finished(number, group, []))


def ready(schedule):
    return [each.number for each in schedule.ready()]


def test_in_the_order_of_admission_nothing_is_ready_behind_a_prompt_that_is_in_flight():
    schedule = started(4, max_staleness=1)
    finish(schedule, 3, 1)
    assert ready(schedule) == []
    finish(schedule, 0)
    assert ready(schedule) == [0, 1]


def test_in_the_order_of_completion_what_is_too_old_is_dropped_and_makes_room():
    schedule = started(4, max_staleness=1, order="completion")
    finish(schedule, 3, 1, 2)
    assert ready(schedule) == [1, 3]
    assert schedule.room(running=1) == 0
    schedule.version = 2  # version 0 sampled them
    assert ready(schedule) == []
    assert schedule.room(running=1) == 3, "at most 4 in flight"
    assert Last("rollout/groups_stale", 3) in schedule.take([], running=1)


def test_a_deterministic_schedule_starts_nothing_while_a_prompt_is_in_flight():
    schedule = started(0, in_waves=True)
    assert (schedule.room(running=0), schedule.room(running=1)) == (2, 0)


@pytest.mark.parametrize(("draws", "refused"), [(1, 0), (2, 2), (None, 0)])
def test_groups_of_equal_rewards_are_refused_up_to_the_bound(draws, refused):
    schedule = started(4, max_draws=draws)
    finish(schedule, 0, 1, 2, 3, rewards=(1.0, 1.0))
    batch = schedule.ready()
    assert len(batch) == 4 - refused
    dropped = [metric for metric in schedule.take(batch, running=0) if isinstance(metric, Mean)]
    assert dropped == ([] if draws is None else [Mean("rollout/groups_dropped_fraction", refused, 4)])


def test_a_position_holds_what_is_in_flight_and_what_waits_and_resumes_with_the_same_numbers():
    schedule = started(3)
    finish(schedule, 1)
    other = started(0)
    other.restore(schedule.position({"taken": 3}))
    assert list(other.in_flight) == [0, 2]
    finish(other, 0)
    assert ready(other) == [0, 1]
    assert other.admit(Prompt("p/3", (1,), "?")) == 3
    assert other.place_of(3) == (1, 1)
