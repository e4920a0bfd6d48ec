"""Judges the speeds of the links between nodes, which `ray_rl.preflight.link_probe` measures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ray_rl.preflight.finding import Finding, Verdict
from ray_rl.sizes import GIB, MIB

Operation = Literal["all_reduce", "broadcast"]

GB = 1e9
"""Bytes of a GB, as in nccl-tests."""

SLOW = 1 / 3
"""Below this share of the median of the other pairs there is a warning. Healthy pairs differ less, even under load."""
BROKEN = 1 / 10
"""Below this share of that median the check fails. A collective runs at the speed of its slowest link."""
FLOOR_GB_S = 0.05
"""Below this speed there is always a warning; Ethernet of 1 Gbit/s is twice as fast."""


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """The measurement of one collective over all ranks at one size."""

    operation: Operation
    bytes: int
    ranks: int
    seconds: float
    """Seconds of one call on the slowest rank."""

    @property
    def bus_gb_s(self) -> float:
        """Bus bandwidth as nccl-tests define it: bytes / s, times 2(n-1)/n for all-reduce and 1 for broadcast.

        Source: nccl-tests, doc/PERFORMANCE.md. It is comparable with the speed of a link for any number of ranks.
        """
        factor = 2 * (self.ranks - 1) / self.ranks if self.operation == "all_reduce" else 1.0
        return factor * self.bytes / self.seconds / GB


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSpeed:
    """The measurement between two nodes, or why there is none."""

    nodes: tuple[str, str]
    rail: int = 0
    """Index of the GPU on both nodes; 0 on CPU."""
    forth_gb_s: float = 0.0
    """Speed from the first node to the second."""
    back_gb_s: float = 0.0
    round_trip_s: float = 0.0
    """Time for a message of a few bytes and its answer."""
    trouble: str = ""
    """Why there are no numbers; empty if there are."""

    @property
    def slower_gb_s(self) -> float:
        """Speed of the slower direction."""
        return min(self.forth_gb_s, self.back_gb_s)


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Returns every pair of `count` things once, in rounds in which each thing occurs at most once.

    There are count - 1 rounds, or count if it is odd. This is the circle method of tournaments: the first thing keeps
    its place, and the others move by one place each round.
    """
    circle: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    plan = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        across = zip(circle[:half], reversed(circle[half:]), strict=True)
        plan.append([(min(a, b), max(a, b)) for a, b in across if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return plan


def verdict_of(speed: PairSpeed, others: Sequence[PairSpeed]) -> tuple[Verdict, float | None]:
    """Compares a pair with other pairs; returns the verdict, and their median in GB/s or None if there are none."""
    rates = [other.slower_gb_s for other in others if not other.trouble and other.nodes != speed.nodes]
    median = statistics.median(rates) if rates else None
    if speed.trouble or (median is not None and speed.slower_gb_s < BROKEN * median):
        return "fail", median
    if speed.slower_gb_s < max(FLOOR_GB_S, SLOW * (median or 0.0)):
        return "warn", median
    return "ok", median


def suspects(speeds: Sequence[PairSpeed]) -> list[PairSpeed]:
    """Returns the pairs that do not pass."""
    return [speed for speed in speeds if verdict_of(speed, speeds)[0] != "ok"]


def judge_links(speeds: Sequence[PairSpeed]) -> list[Finding]:
    """Returns a finding for each slow or silent pair of nodes, by its worst rail; or one finding if all pass."""
    if not speeds:
        return [Finding("links", "ok", "one node: there are no links")]
    worst: dict[tuple[str, str], PairSpeed] = {}
    for speed in suspects(speeds):
        known = worst.get(speed.nodes)
        if known is None or (not speed.trouble, speed.slower_gb_s) < (not known.trouble, known.slower_gb_s):
            worst[speed.nodes] = speed
    pairs = {speed.nodes for speed in speeds}
    if not worst:
        rates = [speed.slower_gb_s for speed in speeds]
        return [Finding("links", "ok", f"{len(pairs)} pairs, {min(rates):.3g} to {max(rates):.3g} GB/s")]
    common = _in_all(list(worst), pairs)
    return [_fault(speed, speeds, common) for speed in worst.values()]


def _in_all(faulty: Sequence[tuple[str, str]], pairs: set[tuple[str, str]]) -> set[str]:
    """Returns the nodes whose links are all faulty, in a cluster where other links are not."""
    if len(faulty) == len(pairs):
        return set()
    links, faults = (Counter(node for pair in chosen for node in pair) for chosen in (pairs, faulty))
    return {node for node, count in faults.items() if count == links[node]}


def _fault(speed: PairSpeed, speeds: Sequence[PairSpeed], common: set[str]) -> Finding:
    verdict, median = verdict_of(speed, speeds)
    first, second = speed.nodes
    rail = f", GPU {speed.rail} of both" if any(other.rail for other in speeds) else ""
    usual = "" if median is None else f"; the median of the other pairs is {median:.3g} GB/s"
    if speed.trouble:
        detail = f"no answer{rail}: {speed.trouble}"
    else:
        detail = f"{speed.forth_gb_s:.3g} GB/s from {first} to {second}, {speed.back_gb_s:.3g} GB/s back{rail}{usual}"
    remedy = "look at cable, switch port, firewall and route between the two (ethtool, ibstat, ip route get)"
    shared = sorted(common & set(speed.nodes))
    if shared:
        remedy = f"all links of {' and of '.join(shared)} are like this: look at its network card, port and firewall"
    return Finding("link", verdict, detail, remedy, f"{first} - {second}")


def judge_sweep(points: Sequence[SweepPoint], trouble: str) -> list[Finding]:
    """Returns one finding: the best bus bandwidth of each operation, or why it was not measured."""
    if trouble:
        remedy = "the pairs above say which link is faulty; if all are ok, look at limits of open files and ports"
        return [Finding("bandwidth", "fail", trouble, remedy)]
    if not points:
        return [Finding("bandwidth", "ok", "one rank: nothing to measure")]
    best: dict[str, SweepPoint] = {}
    for point in points:
        if point.operation not in best or point.bus_gb_s > best[point.operation].bus_gb_s:
            best[point.operation] = point
    said = [f"{name} {point.bus_gb_s:.3g} GB/s at {size_text(point.bytes)}" for name, point in best.items()]
    return [Finding("bandwidth", "ok", f"over {points[0].ranks} ranks: {', '.join(said)}")]


def size_text(count: int) -> str:
    """Formats bytes as 1 KiB or 32 MiB: sizes of sweeps are powers of two."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count} B"
