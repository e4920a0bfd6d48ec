"""The planner's time of a step against the real driver and collector over simulated engines and trainers."""

from math import ceil

import pytest

from ray_rl.planner.decoding import Pace, decode
from ray_rl.planner.lengths import Lengths
from ray_rl.planner.sampling import Sampling
from ray_rl.planner.throughput import overlapped_s
from tests.benchmarks.scheduler import PROMPTS, simulate
from tests.benchmarks.simulated import (
    GROUP,
    MAX_TOKENS,
    MEDIAN_TOKENS,
    RESUME_S,
    SIGMA,
    SLOTS,
    SYNC_S,
    Load,
    token_s,
)


def planned_s(load: Load, staleness: int) -> float:
    lengths = Lengths(MAX_TOKENS, median=MEDIAN_TOKENS, sigma=SIGMA)
    mean, _ = lengths.moments()
    tokens = PROMPTS * GROUP * mean
    drawn = lengths.draws(ceil(PROMPTS / load.engines) * GROUP)
    drawn[drawn.index(max(drawn))] = lengths.longest_of(PROMPTS * GROUP)
    sampling = Sampling(
        rollout_s=decode(drawn, slots=SLOTS, prompt=0, pace=Pace(token_s, 0.0)).seconds,
        steady_s=load.sampling_s(tokens) + RESUME_S * SLOTS,
        longest_s=lengths.longest_of(PROMPTS * GROUP) * token_s(SLOTS),
    )
    train_s = tokens * load.training_s + SYNC_S
    if staleness == 0:
        return sampling.rollout_s + train_s
    return overlapped_s(sampling, 0.0, train_s, SYNC_S, staleness=staleness)


@pytest.mark.parametrize(
    ("ratio", "gpus", "staleness"),
    [(1.0, 48, 0), (1.0, 16, 1), (1.0, 48, 1), (1.0, 48, 2), (2.1, 48, 0), (2.1, 48, 1)],
)
def test_the_planner_agrees_with_the_driver_over_simulated_machines(ratio, gpus, staleness):
    load = Load(gpus, PROMPTS, ratio)
    simulated = simulate(load, staleness=staleness, order="admission")
    assert planned_s(load, staleness) == pytest.approx(simulated.step_s, rel=0.1)
