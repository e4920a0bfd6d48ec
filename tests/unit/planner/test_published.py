"""The planner against runs that others have published: the total within 0.6 to 1.6 times, each phase within 2."""

import pytest

from tests.unit.planner.published import RUNS

TOTAL = (0.6, 1.6)
PHASE = (0.5, 2.0)
TOO_FAST = ("nemo-aligner-70b-96",)
"""Runs of which the planner says less than 0.6 of the time: static batches of eight wait for their longest answer."""


@pytest.fixture(scope="module")
def ratios(tmp_path_factory):
    """Planned over published seconds, by run and phase."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, run in RUNS.items():
        times = run.estimate(folder)
        planned = {"step": times.step_s, **{phase: getattr(times, phase) for phase in run.seconds if phase != "step"}}
        found[name] = {phase: planned[phase] / seconds for phase, seconds in run.seconds.items()}
    return found


def is_near(ratios):
    return all(
        low <= ratio <= high for phase, ratio in ratios.items() for low, high in [TOTAL if phase == "step" else PHASE]
    )


def test_nine_of_ten_published_runs_are_near(ratios):
    assert len(RUNS) == 10
    assert [name for name in RUNS if not is_near(ratios[name])] == list(TOO_FAST)
    assert 0.4 < ratios["nemo-aligner-70b-96"]["step"] < 0.6


def test_runs_that_were_held_out_are_as_near_as_those_that_were_fitted(ratios):
    held_out = [name for name, run in RUNS.items() if not run.fitted]
    assert len(held_out) == 6
    assert [name for name in held_out if not is_near(ratios[name])] == list(TOO_FAST)


def test_every_run_names_its_source():
    assert all(run.source and run.seconds["step"] > 0 for run in RUNS.values())
