"""Judges the nodes of a cluster, which `ray_rl.preflight.nodes` inspects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray_rl.preflight.finding import Finding, Verdict, disk_room, no_shared_memory, shared_memory_room
from ray_rl.preflight.link_verdicts import PairSpeed, SweepPoint
from ray_rl.preflight.machine import TESTED

PACKAGES = {name: tested.distributions for name, tested in TESTED.items()}
"""Packages, with their distributions, whose versions must be equal on all nodes, in addition to python and ray_rl."""

DRIVER = "the driver"
"""The driver's name in messages, among those of nodes."""

CLOCK_WARN_S = 1.0
"""Beyond this difference, times in logs and metrics of different nodes are not comparable."""
CLOCK_FAIL_S = 30.0
"""Beyond this difference, short-lived tokens and leases are refused, and caches mistake new files for old ones."""


@dataclass(frozen=True, slots=True)
class Room:
    """The space of a file system."""

    at: str
    """The folder that was measured: the nearest existing one."""
    free_gib: float
    total_gib: float


@dataclass(frozen=True, slots=True)
class Canary:
    """A small file in each direction between the driver and a node, in the shared folder."""

    unread: str = ""
    """Why the node could not read the driver's file; empty if it could."""
    unwritten: str = ""
    """Why the node could not write; empty if it could."""
    unseen: str = ""
    """Why the driver did not find the node's file; empty if it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSight:
    """The facts about one node."""

    name: str
    versions: Mapping[str, str | None]
    """Version by package; None if it is not installed."""
    gpus: int
    """GPUs that nvidia-smi lists."""
    gpu_trouble: str
    """The error message of nvidia-smi; empty if it works or is not installed."""
    ray_gpus: int
    """GPUs that Ray knows."""
    shared_memory: Room | None
    """The space of /dev/shm; None if there is none."""
    disks: Mapping[str, Room]
    """Disks by their name in the report."""
    clock_ahead_s: float
    """How far the node's clock is ahead of the driver's."""
    clock_doubt_s: float
    """Uncertainty of that difference: half the round trip of the question."""
    canary: Canary | None
    """The canary; None if the driver could not write one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the run needs from the cluster."""

    nodes: int
    gpus_per_node: int
    """GPUs of each node; 0 on CPU."""
    folder: str
    """`run.dir`, on all nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The report of `ray-rl doctor --cluster`."""

    findings: list[Finding]
    pairs: list[PairSpeed]
    bandwidth: list[SweepPoint]


def judge_nodes(
    sights: Sequence[NodeSight], silent: Mapping[str, str], driver: Mapping[str, str | None], wanted: Wanted
) -> list[Finding]:
    """Returns one finding for each check that all nodes pass, and one for each node that fails a check.

    Args:
        sights: the facts about nodes that answered.
        silent: the other nodes, with the reason if known.
        driver: the versions where the driver runs.
        wanted: what the run needs.
    """
    findings = list(_nodes(sights, silent, wanted))
    if not sights:
        return findings
    for package in ("python", *PACKAGES, "ray_rl"):
        findings += _version(package, {sight.name: sight.versions.get(package) for sight in sights}, driver)
    findings += _by_node("gpus", [_gpus(sight, wanted) for sight in sights])
    findings += _by_node("/dev/shm", [_shared_memory(sight) for sight in sights])
    for name in sights[0].disks:
        findings += _by_node(name, [_disk(name, sight) for sight in sights])
    findings += _by_node("clock", [_clock(sight) for sight in sights])
    canaries = [_canary(sight.name, sight.canary, wanted) for sight in sights if sight.canary is not None]
    return findings + _by_node("shared folder", canaries)


def _nodes(sights: Sequence[NodeSight], silent: Mapping[str, str], wanted: Wanted) -> Iterator[Finding]:
    for name, reason in silent.items():
        remedy = "look at the raylet's log there, and at what Ray runs there (`ray list nodes`)"
        yield Finding("nodes", "fail", f"did not answer: {reason}", remedy, name)
    able = [sight.name for sight in sights if sight.ray_gpus >= wanted.gpus_per_node]
    kind = f" with {wanted.gpus_per_node} GPUs or more" if wanted.gpus_per_node else ""
    detail = f"{len(able)} answer{kind}, cluster.nodes is {wanted.nodes}: {', '.join(able)}"
    if len(able) < wanted.nodes:
        yield Finding("nodes", "fail", detail, "start Ray on the missing nodes, or set cluster.nodes")
    elif not silent:
        yield Finding("nodes", "ok", detail)


def _by_node(name: str, findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings that are not ok; if all are ok, one that shows the first and last of their texts."""
    faults = [finding for finding in findings if finding.verdict != "ok"]
    if faults or not findings:
        return faults
    seen = sorted({finding.detail for finding in findings})
    detail = seen[0] if len(seen) == 1 else f"from {seen[0]} to {seen[-1]}"
    return [Finding(name, "ok", detail)]


def _version(package: str, by_node: Mapping[str, str | None], driver: Mapping[str, str | None]) -> list[Finding]:
    """Returns a finding for each node whose version differs from that of most nodes; the driver decides a draw."""
    everywhere = {DRIVER: driver.get(package), **by_node}
    usual, _ = Counter(everywhere.values()).most_common(1)[0]
    if usual is None:
        return [Finding(package, "fail", "not installed on most nodes", "use one image, or run `make setup` on all")]
    odd = {name: version for name, version in everywhere.items() if version != usual}
    if not odd:
        return [Finding(package, "ok", usual)]
    remedy = f"install {package} {usual} there, or use one image: workers exchange pickles and tensors"
    others = "the others have" if len(everywhere) - len(odd) > 1 else f"{DRIVER} has"
    return [
        Finding(package, "fail", f"{version or 'not installed'}; {others} {usual}", remedy, name)
        for name, version in odd.items()
    ]


def _gpus(sight: NodeSight, wanted: Wanted) -> Finding:
    detail = f"{sight.gpus} listed by nvidia-smi, {sight.ray_gpus} known to Ray"
    if not wanted.gpus_per_node or not (sight.gpus or sight.ray_gpus or sight.gpu_trouble):
        return Finding("gpus", "ok", "none wanted" if not wanted.gpus_per_node else "a node for work on CPU")
    if sight.gpu_trouble:
        remedy = "install or reload the NVIDIA driver there; dmesg | grep -i xid"
        return Finding("gpus", "fail", f"nvidia-smi: {sight.gpu_trouble}", remedy, sight.name)
    if sight.gpus < sight.ray_gpus:
        remedy = "a GPU fell off the bus (dmesg | grep -i xid), or `ray start --num-gpus` says too many"
        return Finding("gpus", "fail", detail, remedy, sight.name)
    if sight.ray_gpus < wanted.gpus_per_node:
        remedy = "start Ray there with all GPUs, or set cluster.gpus_per_node"
        return Finding("gpus", "fail", f"{detail}; cluster.gpus_per_node is {wanted.gpus_per_node}", remedy, sight.name)
    return Finding("gpus", "ok", detail)


def _shared_memory(sight: NodeSight) -> Finding:
    room = sight.shared_memory
    if room is None:
        return no_shared_memory(node=sight.name)
    return shared_memory_room(room.free_gib, room.total_gib, node=sight.name)


def _disk(name: str, sight: NodeSight) -> Finding:
    room = sight.disks[name]
    return disk_room(name, room.free_gib, at=room.at, node=sight.name)


def _clock(sight: NodeSight) -> Finding:
    """Judges a node's clock by the smallest difference that the uncertainty allows."""
    least_s = max(0.0, abs(sight.clock_ahead_s) - sight.clock_doubt_s)
    side = "ahead of" if sight.clock_ahead_s > 0 else "behind"
    detail = f"{abs(sight.clock_ahead_s):.3f} s {side} {DRIVER}'s (known to {sight.clock_doubt_s:.3f} s)"
    if least_s <= CLOCK_WARN_S:
        return Finding("clock", "ok", f"less than {CLOCK_WARN_S:g} s from {DRIVER}'s")
    verdict: Verdict = "fail" if least_s > CLOCK_FAIL_S else "warn"
    return Finding("clock", verdict, detail, "run an NTP client there (chrony, systemd-timesyncd)", sight.name)


def _canary(node: str, canary: Canary, wanted: Wanted) -> Finding:
    """Returns one finding for a node, with the first cause, because others follow from it."""
    remedy = f"mount one file system at {wanted.folder} on all nodes, or set run.dir to where one is"
    if canary.unwritten:
        detail = f"{wanted.folder} cannot be written: {canary.unwritten}"
        if canary.unread:
            detail += f"; nor is what {DRIVER} wrote there: {canary.unread}"
        return Finding("shared folder", "fail", detail, f"make it writable, with room; {remedy}", node)
    if canary.unread:
        detail = f"{wanted.folder} is not the file system that {DRIVER} sees: {canary.unread}"
        return Finding("shared folder", "fail", detail, remedy, node)
    if canary.unseen:
        detail = f"{DRIVER} does not see what this node wrote to {wanted.folder}: {canary.unseen}"
        return Finding("shared folder", "fail", detail, remedy, node)
    return Finding("shared folder", "ok", f"{wanted.folder} is read and written by all")
