"""Estimates the seconds of the rollouts of a step, and of a publish to the engines."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ray_rl.catalog.shapes import ModelShape
from ray_rl.config import RunConfig
from ray_rl.config.gpus import sharers_of_engines
from ray_rl.config.roles import ACTOR, ROLLOUT
from ray_rl.planner.adapters import Adapters
from ray_rl.planner.arithmetic import step_arithmetic
from ray_rl.planner.compute import Team
from ray_rl.planner.decoding import Pace, decode
from ray_rl.planner.engines import KvCache, engine_weights
from ray_rl.planner.lengths import Lengths
from ray_rl.planner.memory import Bounds
from ray_rl.planner.plan import Plan
from ray_rl.planner.rates import Rates
from ray_rl.sizes import MIB

STEP_S = 4e-3
"""Seconds of a decoding step apart from the model: scheduling, sampling, and the start of its kernels."""
ALL_REDUCE_S = 20e-6
"""Least seconds of a sum over the GPUs of an engine, of which every layer takes two."""
BUCKET_S = 0.5e-3
"""Least seconds of a bucket of a publish."""
ADAPTED_LAYER_S = 60e-6
"""Seconds that adapters add to a layer of a decoding step: 2 ms over 32 layers in Punica (arXiv:2310.18547)."""
ADAPTED_ON_CPU = 3.8
"""How many times as long vLLM on CPU samples with adapters: 2.7 in place of 10.3 tokens per processor second."""
MERGE_BYTES = 20
"""Bytes per parameter that merging reads and writes: B A and the sum in float32, and the weight in 16 bits, twice."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How fast engines sample."""

    rollout_s: float
    """Seconds from the start of a step's rollouts to the end of the last one, if nothing else runs."""
    steady_s: float
    """Seconds of the same rollouts if engines never run out of waiting sequences, as with `max_staleness`."""
    longest_s: float
    """Seconds of the longest completion while all places are taken."""


def engine_pace(config: RunConfig, shape: ModelShape, cache: KvCache, rates: Rates) -> Pace:
    """Returns the seconds of a decoding step: reading the weights or multiplying by them, and reading the caches."""
    element, size = Bounds(config).element, config.rollout.tensor_parallel
    read = engine_weights(config, shape) / rates.memory
    is_on_cpu = config.cluster.accelerator == "cpu"
    adapted_s = shape.layers * ADAPTED_LAYER_S if config.publishes_adapters and not is_on_cpu else 0.0
    times = ADAPTED_ON_CPU if config.publishes_adapters and is_on_cpu else 1.0

    def fixed(running: int) -> float:
        multiplied = 2 * shape.parameters * running / size / rates.decoding
        reduced = ALL_REDUCE_S + running * shape.hidden * element / rates.link
        device = max(read, multiplied) + STEP_S + adapted_s + (2 * shape.layers * reduced if size > 1 else 0.0)
        return times * max(device, running * rates.front_end_s)

    return Pace(fixed, times * cache.token / rates.memory)


def sampling(config: RunConfig, shape: ModelShape, cache: KvCache, rates: Rates, lengths: Lengths) -> Sampling:
    """Returns how fast the engines sample the rollouts of a step."""
    rollout, step = config.rollout, step_arithmetic(config)
    prompt = config.data.max_prompt_tokens if lengths.prompt is None else lengths.prompt
    pace = engine_pace(config, shape, cache, rates)
    mean, square = lengths.moments()
    room = max(1, int(cache.total // (cache.token * (prompt + mean))))
    at_most = min(rollout.max_sequences, room)
    drawn = lengths.draws(step.per_engine)
    drawn[drawn.index(max(drawn))] = lengths.longest_of(step.sequences)
    prompts = ceil(step.prompts / rollout.engines)
    prefill = 2 * shape.parameters * prompts * prompt / rollout.tensor_parallel / rates.scoring
    found = decode(drawn, slots=min(at_most, step.per_engine), prompt=prompt, pace=pace)
    running = min(at_most, step.per_engine * (1 + rollout.max_staleness))
    token_s = pace.fixed(running) + pace.context * running * (prompt + square / mean / 2)
    # After a publish the engines compute the caches of what they run again.
    again = 2 * shape.parameters * running * (prompt + square / mean / 2) / rollout.tensor_parallel / rates.scoring
    return Sampling(
        rollout_s=prefill + found.seconds,
        steady_s=prefill + step.per_engine * mean * token_s / running + again,
        longest_s=prefill + lengths.longest_of(step.sequences) * token_s,
    )


def sync_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Returns the bytes of one publish: every parameter once, or the adapters, or the matrices they are added to."""
    adapters = Adapters.of(config, shape)
    if adapters is None:
        return Bounds(config).element * shape.parameters
    return Bounds(config).element * (adapters.parameters if config.publishes_adapters else adapters.matrices)


def publish_s(config: RunConfig, shape: ModelShape, layout: Plan, rates: Rates) -> float:
    """Returns the seconds of a publish: gathering the weights, sending them to the engines, and their checksums.

    Engines that share the GPUs of the actor read the weights there, so that nothing crosses the network but what is
    gathered. Merging adapters reads and writes memory.
    """
    size = sync_bytes(config, shape)
    actors, engines = layout.places(ACTOR), layout.places(ROLLOUT)
    gathered = Team.at(actors, rates).exchanged_s(size) if config.train.zero_stage == 3 else 0.0
    if sharers_of_engines(config):
        sent = 2 * size / rates.memory
    else:
        is_near = all(place.node == actors[0].node for place in engines)
        sent = size / (rates.link if is_near else rates.network)
    is_merged = config.model.adapter is not None and not config.publishes_adapters
    merged = MERGE_BYTES * size / Bounds(config).element / rates.memory if is_merged else 0.0
    buckets = ceil(size / (config.weight_sync.bucket_mib * MIB))
    return gathered + merged + sent + size / rates.digest + buckets * BUCKET_S
