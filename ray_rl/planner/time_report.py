"""Prints the time of a step as text: its phases, who waits for whom, and what would be faster."""

from __future__ import annotations

from collections.abc import Iterator

from ray_rl.config import RunConfig
from ray_rl.planner.assess import Assessment
from ray_rl.planner.faster import faster, waits
from ray_rl.planner.lengths import Lengths
from ray_rl.planner.pasting import pasted
from ray_rl.planner.throughput import ASSUMED, Assumptions, Estimate, estimate

PER_EXAMPLES = 100_000
"""Number of examples for which the time is printed if the length of the run is given in epochs."""


def time_lines(config: RunConfig, assessment: Assessment, assumed: Assumptions = ASSUMED) -> Iterator[str]:
    """Yields the time of a step and of the run; yields nothing if the run does not fit, or on CPU without rates."""
    if not assessment.fits or not (assessment.layout.gpus or assumed.rates):
        return
    if assessment.cluster.gpu.speed is None and assumed.rates is None:
        yield "time: unknown, because only the GPU's memory is known; add --gpu NAME for the speed of a known one"
        return
    times = estimate(config, assessment, assumed)
    yield from _step(config, times, assumed)
    if assessment.layout.gpus:
        yield f"busy: {times.busy:.0%} of the GPU seconds"
        yield from (f"  {wait}" for wait in waits(assessment, times))
        gains = faster(config, assessment, times, assumed)
        if gains:
            yield "faster on the same GPUs (each change alone was planned and fits):"
        for gain in gains:
            yield f"  {gain.times:.2f}x with"
            yield from pasted(gain.words, indent="    ")
    if config.run.steps is not None:
        what, length = "time of the run", f"{config.run.steps:,} steps"
        steps = float(config.run.steps)
    else:
        what, length = "time of an epoch", f"every {PER_EXAMPLES:,} examples"
        steps = PER_EXAMPLES / config.offline.batch_size
    yield f"{what}: {_hours(times.run_s(steps))} for {length}, to a factor of two (assumptions: docs/planning.md)"


def _step(config: RunConfig, times: Estimate, assumed: Assumptions) -> Iterator[str]:
    rate = f"{times.tokens / times.step_s:,.0f} tokens/s"
    if config.is_offline:
        parts = f": reference {_brief(times.score_s)}, update {_brief(times.update_s)}" if times.score_s else ""
        yield f"time of a step, if every sequence has full length: {_brief(times.step_s)} s{parts}; {rate}"
        return
    lengths = assumed.lengths or Lengths(config.most_tokens)
    turns = f", turns on the GPUs {_brief(times.turn_s)}" if times.turn_s else ""
    yield (
        f"time of a step, {lengths.described()}: {_brief(times.step_s)} s: rollouts {_brief(times.rollout_s)}, scores "
        f"{_brief(times.score_s)}, update {_brief(times.update_s)}, sync {_brief(times.sync_s)}{turns}; {rate}"
    )
    if config.rollout.max_staleness:
        slower = "rollouts" if times.step_s > times.train_s else "training"
        yield f"  engines sample while models are trained (rollout.max_staleness); the {slower} decide the time"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h"


def _brief(seconds: float) -> str:
    """Returns seconds with as many digits as matter: 0, 0.25, 4.1, 123."""
    if seconds >= 10 or not seconds:
        return f"{seconds:,.0f}"
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"
