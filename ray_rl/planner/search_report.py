"""Prints what a search for layouts found as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError
from ray_rl.planner.assess import USABLE
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.layouts import layouts
from ray_rl.planner.pasting import pasted
from ray_rl.planner.search import Found, Search, search
from ray_rl.planner.throughput import Assumptions
from ray_rl.sizes import GIB


def search_lines(config: RunConfig, cluster: ClusterShape, assumed: Assumptions) -> Iterator[str]:
    """Yields what is searched, then, after some seconds, the fastest layouts, with words to append to the command.

    Layouts that train on samples of older weights are apart from the others, because they change what is learnt.

    Raises:
        ConfigError: nothing can be searched, or no layout fits.
    """
    if config.cluster.accelerator == "cpu":
        raise ConfigError(
            "--optimise: searches layouts of GPUs, and the run is on CPU (cluster.accelerator=cpu); add "
            "cluster.accelerator=gpu, or leave the option out"
        )
    if cluster.gpu.speed is None and assumed.rates is None:
        raise ConfigError(
            "--optimise: needs the speed of the GPU, and only its memory is known; add --gpu NAME or --rates FILE"
        )
    count = sum(1 for _ in layouts(config, cluster))
    yield (
        f"searching {count:,} layout{'' if count == 1 else 's'} for {cluster.nodes} x {cluster.gpus_per_node} GPUs "
        f"({cluster.gpu.name}, {cluster.gpu.memory_bytes / GIB:.1f} GiB each)"
    )
    found = search(config, cluster, assumed)
    if not found.on_policy and found.given is None:
        raise ConfigError(
            f"no layout fits {cluster.nodes} x {cluster.gpus_per_node} GPUs; without --optimise, the command proposes "
            "changes that fit"
        )
    yield "as given: does not fit" if found.given is None else f"as given: {_figures(found.given)}"
    if config.is_offline:
        yield "the fastest that fits:"
    else:
        yield "the fastest that fit and train on samples of the newest weights (rollout.max_staleness=0):"
    yield from _numbered(found, found.on_policy)
    if found.stale:
        yield "still faster, but on samples of older weights, which changes what is learnt (rollout.max_staleness):"
        yield from _numbered(found, found.stale)


def _numbered(search: Search, found: Sequence[Found]) -> Iterator[str]:
    for index, one in enumerate(found, start=1):
        times = search.times(one)
        faster = "" if times is None else f", {times:.2f}x as fast as given"
        yield f"  {index}. {_figures(one)}{faster}"
        limit = USABLE * one.assessment.cluster.gpu.memory_bytes / GIB
        yield (
            f"     {one.fullest_bytes / GIB:.1f} of {limit:.1f} GiB on the fullest GPU, "
            f"{one.assessment.host_bytes / GIB:.0f} GiB of memory of the fullest node"
        )
        yield from pasted(one.words, indent="     ") if one.words else ["     as given"]


def _figures(found: Found) -> str:
    digits = 0 if found.times.step_s >= 100 else 1
    return f"{found.times.step_s:,.{digits}f} s a step, {found.rate:,.0f} tokens/s per GPU, {found.busy:.0%} busy"
