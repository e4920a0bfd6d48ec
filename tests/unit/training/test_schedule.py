import pytest

from ray_rl.config.train import Schedule
from ray_rl.training.schedule import learning_rate_factor


def factors(total: int, **schedule) -> list[float]:
    return [learning_rate_factor(Schedule(**schedule), step=step, total_steps=total) for step in range(total)]


def test_warm_up_rises_linearly_and_the_first_step_learns():
    assert factors(6, warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_linear_falls_to_its_minimum_at_the_last_step():
    assert factors(5, kind="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert factors(5, kind="linear", minimum=0.2) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_cosine_falls_to_its_minimum_at_the_last_step():
    # (1 + cos(pi x)) / 2 at x = 0, 1/4, 1/2, 3/4, 1
    assert factors(5, kind="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert factors(3, kind="cosine", minimum=0.1) == pytest.approx([1, 0.55, 0.1])


def test_the_decay_starts_at_the_peak_after_the_warm_up():
    assert factors(6, kind="linear", warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_steps_beyond_the_planned_ones_stay_at_the_minimum(kind):
    schedule = Schedule(kind=kind, minimum=0.1)
    assert learning_rate_factor(schedule, step=99, total_steps=10) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_decay_of_one_step_stays_at_the_peak(kind):
    assert factors(1, kind=kind) == [1.0]
    assert factors(2, kind=kind, warmup_steps=1) == [0.5, 1.0]
