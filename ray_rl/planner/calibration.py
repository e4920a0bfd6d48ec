"""Turns measurements of this machine, or of the phases of a run, into rates for `ray-rl plan --rates`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from ray_rl.config import RunConfig
from ray_rl.config.roles import REFERENCE
from ray_rl.errors import ConfigError
from ray_rl.planner.assess import Assessment
from ray_rl.planner.lengths import Lengths, parse_lengths
from ray_rl.planner.rates import BANDWIDTH_SHARE, LINK_SHARE, Rates
from ray_rl.planner.throughput import Assumptions, estimate

CPU = Rates(
    training=1e11,
    scoring=1e11,
    decoding=5e10,
    memory=1e10,
    link=5e9,
    network=1e9,
    digest=1e10,
    front_end_s=120e-6,
)
"""First guess for the rates of a run on CPU."""

OF_PRODUCTS = {"cuda": (0.57, 0.64), "cpu": (0.8, 0.85)}
"""Rates of training, and of passes without gradients, over the measured rate of large products of matrices. On GPU: the
assumed shares over the 70% of the peak that products reach. On CPU: 1.13 TFLOP of an update at 100 GFLOP/s of measured
products took 13.5 s on two AVX2 cores."""
OF_NARROW_PRODUCTS = 0.6
"""Rate of decoding over that of products with 64 rows: 0.4 TFLOP took 7.8 s there, and 4.8 s by the products alone."""
OF_COPIES = BANDWIDTH_SHARE / 0.9
"""Bandwidth that decoding reaches over that of a copy, which reaches 90% of the peak."""
FRONT_END_S = {"cuda": 40e-6, "cpu": 120e-6}
"""Processor seconds of an engine's front end for a token."""

FACTOR, ROUNDS = 1e3, 40
"""Largest factor between a rate and its first guess, and halvings of the search for it."""


def rates_of_machine(measured: Mapping[str, float], kind: str) -> dict[str, float]:
    """Returns rates by the names of `Rates` from the measurements of `ray_rl.preflight.rate_probe`.

    Args:
        measured: rates by what was measured; between GPUs and to the host only where there are such.
        kind: `cuda` or `cpu`.
    """
    training, scoring = OF_PRODUCTS[kind]
    rates = {
        "training": training * measured["products"],
        "scoring": scoring * measured["products"],
        "decoding": OF_NARROW_PRODUCTS * measured["narrow_products"],
        "memory": OF_COPIES * measured["copies"],
        "digest": measured["digests"],
        "launch_s": measured["layer_s"],
        "front_end_s": FRONT_END_S[kind],
    }
    for name, source in (("link", "between_gpus"), ("network", "loopback"), ("host", "to_host")):
        if source in measured:
            rates[name] = LINK_SHARE * measured[source]
    if kind == "cpu":
        rates["link"] = rates["memory"] / 2  # a copy through shared memory is written and read
    return rates


@dataclass(frozen=True, slots=True)
class Phases:
    """Mean seconds of the phases of a run's steps, and the mean length of its completions."""

    rollout_s: float
    score_s: float
    update_s: float
    sync_s: float
    length: float
    steps: int


def read_phases(folder: Path) -> Phases:
    """Returns the phases of a run, without its first step, which also warms up.

    Raises:
        ConfigError: the folder has too few steps with rollouts.
    """
    file = folder / "metrics.jsonl"
    try:
        steps = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][1:]
        lengths = [step["rollout/length_mean"] for step in steps]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{file}: has no steps with rollouts ({error}); give the folder of such a run") from None
    if not steps:
        raise ConfigError(f"{file}: has fewer than two steps, and the first also warms up; give a longer run")

    def mean(phase: str) -> float:
        return fmean(step.get(f"time/{phase}_s", 0.0) for step in steps)

    return Phases(mean("rollout"), mean(REFERENCE), mean("train"), mean("sync"), fmean(lengths), len(steps))


def lengths_of(config: RunConfig, phases: Phases, given: Lengths) -> Lengths:
    """Returns the lengths of a run: those that were given, else lognormal with the mean that was measured."""
    if not given.is_full or phases.length >= 0.99 * config.most_tokens:
        return given
    measured = parse_lengths(f"mean={phases.length}", maximum=config.most_tokens)
    return replace(measured, prompt=given.prompt)


def rates_of_run(
    config: RunConfig, assessment: Assessment, phases: Phases, *, lengths: Lengths, start: Rates
) -> dict[str, float]:
    """Returns rates with which the plan of a run has the phases that the run had.

    Raises:
        ConfigError: engines sampled while models were trained, so that the phases are not known one by one.
    """
    if config.rollout.max_staleness:
        raise ConfigError(
            f"rollout.max_staleness={config.rollout.max_staleness}: engines sampled while models were trained, so that "
            "the times of the phases do not say how long each takes; calibrate with a run with rollout.max_staleness=0"
        )

    rates = start
    # Each rate is fitted before those of phases that also depend on it.
    for names, measured, phase in (
        (("digest", "network"), phases.sync_s, "sync_s"),
        (("scoring",), phases.score_s, "score_s"),
        (("memory", "decoding"), phases.rollout_s, "rollout_s"),
        (("training",), phases.update_s, "update_s"),
    ):
        seconds = partial(_seconds, config, assessment, lengths, phase)
        if measured > 0 and seconds(rates) > 0:
            rates = _fitted(rates, names, seconds, measured)
    return asdict(rates)


def _seconds(config: RunConfig, assessment: Assessment, lengths: Lengths, phase: str, rates: Rates) -> float:
    seconds: float = getattr(estimate(config, assessment, Assumptions(lengths, rates)), phase)
    return seconds


def _fitted(rates: Rates, names: tuple[str, ...], seconds: Callable[[Rates], float], measured: float) -> Rates:
    """Returns the rates with some of them multiplied by the smallest factor that is fast enough."""

    def times(factor: float) -> Rates:
        return replace(rates, **{name: factor * getattr(rates, name) for name in names})

    low, high = 1 / FACTOR, FACTOR
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if seconds(times(middle)) > measured else (low, middle)
    return times(high)


def as_json(rates: Mapping[str, float], **described: Any) -> str:
    """Returns the file that `--rates` reads, with a description of what was measured."""
    return json.dumps({**{name: float(f"{number:.4g}") for name, number in rates.items()}, **described}, indent=2)
