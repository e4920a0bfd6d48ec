"""Inspects every node of a Ray cluster and the links between them. `preflight.node_verdicts` judges the nodes."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_rl.cluster.session import joined
from ray_rl.config.cluster import ClusterConfig
from ray_rl.errors import ClusterError
from ray_rl.preflight import node_probe
from ray_rl.preflight.answers import Answers, gather
from ray_rl.preflight.finding import Finding
from ray_rl.preflight.link_verdicts import judge_links, judge_sweep
from ray_rl.preflight.links import Links, Node
from ray_rl.preflight.nccl_tests import MISSING, PROGRAMS, NcclTest, judge_nccl_tests, parse
from ray_rl.preflight.node_verdicts import PACKAGES, Canary, NodeSight, Report, Room, Wanted, judge_nodes

START_S = 60.0
"""Limit for a node to start a worker and return its facts."""
ANSWER_S = 30.0
"""Limit for any later answer."""
CLOCK_ASKS = 5
"""Measurements of the clock, of which the one with the shortest round trip counts."""

NCCL_TEST_S = 120.0
NCCL_TEST_OPTIONS = ("-b", "1M", "-e", "256M", "-f", "16")
"""Smallest size, largest size and factor, which give three sizes."""


def look_at_cluster(cluster: ClusterConfig, folder: str, note: Callable[[str], None]) -> Report:
    """Checks the cluster at `cluster.address` for a run and returns the report. Every wait has a limit.

    Args:
        cluster: the `cluster` section of the run, with an address.
        folder: `run.dir`.
        note: called with a message before each wait.

    Raises:
        ClusterError: the cluster cannot be joined, or has no nodes.
    """
    assert cluster.address is not None, "the caller checks that there is a cluster to look at"
    note(f"joining Ray at {cluster.address}")
    with joined(cluster.address):
        return _look(cluster, os.path.abspath(os.path.expanduser(folder)), note)


def _look(cluster: ClusterConfig, folder: str, note: Callable[[str], None]) -> Report:
    nodes = _nodes(cluster)
    gpus = cluster.gpus_per_node if cluster.accelerator == "gpu" else 0
    wanted = Wanted(nodes=cluster.nodes, gpus_per_node=gpus, folder=folder)
    with _probes(nodes) as probes:
        sights, silent, canary = _sights(nodes, probes, wanted, note)
    findings = judge_nodes(sights, silent, node_probe.versions(PACKAGES), wanted)
    findings += canary
    answered = [node for node in nodes if node.name not in silent]
    devices = [node for node in answered if node.ranks]
    if wanted.gpus_per_node:
        findings += judge_nccl_tests(_nccl_tests(devices, note))
    measured = Links(devices, accelerator=cluster.accelerator, note=note).measure()
    findings += [*judge_links(measured.pairs), *judge_sweep(measured.points, measured.trouble)]
    return Report(findings=findings, pairs=measured.pairs, bandwidth=measured.points)


def _nodes(cluster: ClusterConfig) -> list[Node]:
    """Returns the live nodes, sorted by address.

    Their names are host names if these are unique, else addresses or ids.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if not alive:
        raise ClusterError(f"cluster.address={cluster.address}: Ray knows of no node that is alive")
    named: list[Callable[[dict[str, Any]], str]] = [
        lambda node: str(node["NodeManagerHostname"]),
        lambda node: str(node["NodeManagerAddress"]),
        lambda node: f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}",
    ]
    name = next(name for name in named if max(Counter(map(name, alive)).values()) == 1)
    is_cpu = cluster.accelerator == "cpu"
    nodes = [
        Node(
            node["NodeID"],
            name(node),
            node["NodeManagerAddress"],
            1 if is_cpu else min(int(node["Resources"].get("GPU", 0)), cluster.gpus_per_node),
        )
        for node in alive
    ]
    return sorted(nodes, key=lambda node: ([part.zfill(5) for part in node.address.split(".")], node.id))


@contextmanager
def _probes(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """Yields a `NodeProbe` on every node, by name. The probes are killed at the end of the block."""
    # Sent by value, so that a node with another version of ray_rl, or without it, can report that.
    cloudpickle.register_pickle_by_value(node_probe)
    try:
        probe: Any = ray.remote(num_cpus=0)(node_probe.NodeProbe)
        handles = {
            node.name: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote()
            for node in nodes
        }
        try:
            yield handles
        finally:
            for handle in handles.values():
                ray.kill(handle)
    finally:
        cloudpickle.unregister_pickle_by_value(node_probe)


def _sights(
    nodes: Sequence[Node], probes: dict[str, Any], wanted: Wanted, note: Callable[[str], None]
) -> tuple[list[NodeSight], dict[str, str], list[Finding]]:
    """Returns the facts about nodes that answer, why others do not answer, and problems of the shared folder here."""
    note(f"nodes: waiting for {len(nodes)} to say what they see")
    looks = gather(
        {name: probe.look.remote(PACKAGES, wanted.folder) for name, probe in probes.items()}, timeout_s=START_S
    )
    silent = dict(looks.failures)
    note("nodes: comparing clocks")
    clocks = {}
    for name in looks.results:
        answer = _clock(probes[name])
        if isinstance(answer, str):
            silent[name] = answer
        else:
            clocks[name] = answer
    note(f"nodes: a canary file in {wanted.folder}")
    canaries, trouble = _canaries({name: probes[name] for name in clocks}, wanted.folder)
    gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in ray.nodes()}
    sights = []
    for node in nodes:
        if node.name not in clocks:
            continue
        look = looks.results[node.name]
        ahead_s, doubt_s = clocks[node.name]
        room = look["shared_memory"]
        sights.append(
            NodeSight(
                name=node.name,
                versions=look["versions"],
                gpus=look["gpus"],
                gpu_trouble=look["gpu_trouble"],
                ray_gpus=gpus[node.id],
                shared_memory=None if room is None else Room(**room),
                disks={name: Room(**there) for name, there in look["disks"].items()},
                clock_ahead_s=ahead_s,
                clock_doubt_s=doubt_s,
                canary=canaries.get(node.name),
            )
        )
    return sights, silent, trouble


def _clock(probe: Any) -> tuple[float, float] | str:
    """Returns how far a node's clock is ahead and the uncertainty, in seconds; or why the node did not answer."""
    best = (0.0, float("inf"))
    for _ in range(CLOCK_ASKS):
        begin_s, begun_s = time.time(), time.perf_counter()
        answers: Answers[str] = gather({"clock": probe.clock.remote()}, timeout_s=ANSWER_S)
        trip_s = time.perf_counter() - begun_s
        if answers.failures:
            return answers.failures["clock"]
        if trip_s / 2 < best[1]:
            best = (answers.results["clock"] - (begin_s + trip_s / 2), trip_s / 2)
    return best


def _canaries(probes: Mapping[str, Any], folder: str) -> tuple[dict[str, Canary], list[Finding]]:
    """Exchanges canary files with all nodes; returns the results by node, or a finding if the driver cannot write."""
    try:
        os.makedirs(folder, exist_ok=True)
        place = tempfile.mkdtemp(prefix=".preflight-", dir=folder)
        content = secrets.token_hex(16)
        Path(place, "driver").write_text(content, encoding="ascii")
    except OSError as error:
        remedy = "set run.dir to a folder that all nodes share and that may be written to"
        return {}, [Finding("shared folder", "fail", f"the driver cannot write there: {error}", remedy)]
    answers = {name: secrets.token_hex(16) for name in probes}
    own = {name: f"node-{number}" for number, name in enumerate(probes)}
    try:
        met = gather(
            {
                name: probe.meet_canary.remote(place, "driver", content, own[name], answers[name])
                for name, probe in probes.items()
            },
            timeout_s=ANSWER_S,
        )
        canaries = {name: Canary(unread=f"no answer: {reason}") for name, reason in met.failures.items()}
        for name, found in met.results.items():
            unseen = found["unwritten"] or node_probe.await_content(os.path.join(place, own[name]), answers[name])
            canaries[name] = Canary(**found, unseen=unseen)
        gather({name: probes[name].forget_canary.remote(place, own[name]) for name in met.results}, timeout_s=ANSWER_S)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return canaries, []


def _nccl_tests(nodes: Sequence[Node], note: Callable[[str], None]) -> dict[str, dict[str, NcclTest]]:
    """Runs nccl-tests on the GPUs of each node, one program after the other; returns results by node and program."""
    run = ray.remote(num_cpus=0, max_retries=0)(run_nccl_test)
    found: dict[str, dict[str, NcclTest]] = {node.name: {} for node in nodes}
    for program in PROGRAMS:
        note(f"nccl-tests: {program} where it is installed")
        refs = {}
        for node in nodes:
            strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
            task = run.options(num_gpus=node.ranks, scheduling_strategy=strategy)
            refs[node.name] = task.remote(program, node.ranks)
        answers = gather(refs, timeout_s=START_S + NCCL_TEST_S)
        for name in answers.failures:
            ray.cancel(refs[name], force=True)
        for name, reason in answers.failures.items():
            found[name][program] = NcclTest({}, trouble=reason)
        for name, test in answers.results.items():
            found[name][program] = test
    return found


def run_nccl_test(program: str, gpus: int) -> NcclTest:
    """Runs one of nccl-tests on some of the GPUs that this process sees, and reads its output."""
    path = shutil.which(program)
    if path is None:
        return NcclTest({}, trouble=MISSING)
    command = [path, *NCCL_TEST_OPTIONS, "-g", str(gpus)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NCCL_TEST_S, check=False)
    except subprocess.TimeoutExpired:
        return NcclTest({}, trouble=f"not done within {NCCL_TEST_S:g} s")
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-200:]
        return NcclTest({}, trouble=f"exit code {done.returncode}: {said}")
    try:
        return NcclTest(parse(done.stdout))
    except ValueError as error:
        return NcclTest({}, trouble=str(error))
