"""Schedules the measurements between nodes. `preflight.link_probe` measures, `preflight.link_verdicts` judges."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_rl.preflight.answers import gather
from ray_rl.preflight.link_verdicts import GB, PairSpeed, SweepPoint, rounds, suspects
from ray_rl.training.member import Member

READY_S = 180.0
"""Limit for workers to start and load torch, and for GPUs to be free."""

OPERATION_S = 15.0
"""Limit for one operation of torch's groups, and for joining a group."""
PAIR_S = 2 * OPERATION_S
"""Limit for a pair to answer. Healthy pairs take a second; a rank that hangs longer is killed."""

SWEEP_BUDGET_S = {"cpu": 8.0, "gpu": 30.0}
"""Time for a sweep; larger sizes that would exceed it are left out."""
SWEEP_S = 90.0
"""Limit for the ranks of a sweep to answer."""

AGAIN = 16
"""The most pairs that are measured a second time, each alone."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node with ranks."""

    id: str
    name: str
    """The name in messages."""
    address: str
    ranks: int
    """Number of ranks: one for each GPU; one on CPU."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of the links."""

    pairs: list[PairSpeed]
    points: list[SweepPoint]
    trouble: str
    """Why there are no points. Empty if there are points, or if there is only one rank."""


@ray.remote
class LinkWorker:
    """Runs a `LinkProbe` in a Ray worker."""

    def __init__(self, accelerator: str, address: str) -> None:
        if accelerator == "cpu":
            os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
        self._accelerator, self._address = accelerator, address

    def load(self) -> None:
        """Loads torch."""
        from ray_rl.preflight.link_probe import LinkProbe

        self._probe = LinkProbe(accelerator=self._accelerator, timeout_s=OPERATION_S)

    def free_port(self) -> int:
        """Returns a free port for a group."""
        with socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET) as probe:
            probe.bind((self._address, 0))
            return int(probe.getsockname()[1])

    def pair(self, member: Member) -> Any:
        """Calls `LinkProbe.pair`."""
        return self._probe.pair(member, self._address)

    def sweep(self, member: Member, budget_s: float) -> list[tuple[Any, int, float]]:
        """Calls `LinkProbe.sweep`."""
        return self._probe.sweep(member, self._address, budget_s=budget_s)


Key = tuple[int, int]
"""Index of a node, and of a rank on it."""


class Links:
    """The ranks on all nodes. A rank that hangs is killed, and restarted when it is needed again."""

    def __init__(self, nodes: Sequence[Node], *, accelerator: str, note: Callable[[str], None]) -> None:
        """Makes the ranks without starting workers.

        Args:
            nodes: the nodes, in the order of the report.
            accelerator: cpu or gpu.
            note: called with a message before each wait.
        """
        self._nodes, self._accelerator, self._note = nodes, accelerator, note
        self._workers: dict[Key, Any] = {}

    def measure(self) -> Measured:
        """Measures all pairs, and then all ranks together unless a pair does not answer, because that would hang."""
        try:
            if len(self._nodes) > 1:
                self._ready(self._keys())  # all concurrently; a failed start is retried when its rank is needed
            pairs = self._pairs()
            silent = sorted({" - ".join(pair.nodes) for pair in pairs if pair.trouble})
            if silent:
                return Measured(pairs, [], f"not measured over all nodes, since {', '.join(silent)} did not answer")
            return Measured(pairs, *self._sweep())
        finally:
            self._kill(list(self._workers))

    def _pairs(self) -> list[PairSpeed]:
        speeds: dict[tuple[int, int, int], PairSpeed] = {}
        plan = rounds(len(self._nodes))
        for number, pairs in enumerate(plan, start=1):
            self._note(f"links: round {number} of {len(plan)}, pairs at the same time: {self._named(pairs)}")
            speeds |= self._probed(pairs)
        # A pair may have been slow because others used the processors. That does not explain a missing answer.
        doubtful = [speed for speed in suspects(list(speeds.values())) if not speed.trouble]
        again = sorted({key[:2] for key, speed in speeds.items() if speed in doubtful})[:AGAIN]
        for pair in again:
            self._note(f"links: {self._named([pair])} once more, alone")
            for key, speed in self._probed([pair]).items():
                speeds[key] = max(speeds[key], speed, key=lambda one: (not one.trouble, one.slower_gb_s))
        return list(speeds.values())

    def _keys(self) -> list[Key]:
        return [(node, rank) for node, there in enumerate(self._nodes) for rank in range(there.ranks)]

    def _named(self, pairs: Iterable[tuple[int, int]]) -> str:
        return ", ".join(f"{self._nodes[a].name} - {self._nodes[b].name}" for a, b in pairs)

    def _probed(self, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int, int], PairSpeed]:
        """Measures pairs of nodes that have no node in common, on all rails concurrently."""
        rails = [(a, b, rail) for a, b in pairs for rail in range(min(self._nodes[a].ranks, self._nodes[b].ranks))]
        failures = self._ready([(node, rail) for a, b, rail in rails for node in (a, b)])
        ports = gather({(a, rail): self._ask((a, rail)).free_port.remote() for a, b, rail in rails
                        if not {(a, rail), (b, rail)} & failures.keys()}, timeout_s=PAIR_S)  # fmt: skip
        failures |= ports.failures
        calls = {}
        for a, b, rail in rails:
            if not {(a, rail), (b, rail)} & failures.keys():
                for rank, node in enumerate((a, b)):
                    member = Member(rank, 2, self._nodes[a].address, ports.results[a, rail])
                    calls[node, rail] = self._ask((node, rail)).pair.remote(member)
        answers = gather(calls, timeout_s=PAIR_S)
        failures |= answers.failures
        self._kill(answers.failures)
        speeds = {}
        for a, b, rail in rails:
            names = (self._nodes[a].name, self._nodes[b].name)
            reasons = [f"{names[i]}: {failures[n, rail]}" for i, n in enumerate((a, b)) if (n, rail) in failures]
            if reasons:
                speeds[a, b, rail] = PairSpeed(nodes=names, rail=rail, trouble="; ".join(reasons))
            else:
                times = answers.results[a, rail]
                speeds[a, b, rail] = PairSpeed(
                    nodes=names,
                    rail=rail,
                    forth_gb_s=times.forth / GB,
                    back_gb_s=times.back / GB,
                    round_trip_s=times.round_trip_s,
                )
        return speeds

    def _sweep(self) -> tuple[list[SweepPoint], str]:
        """Returns the points of a sweep, or why there are none."""
        keys = self._keys()
        if len(keys) < 2:
            return [], ""
        failures = self._ready(keys)
        self._note(f"bandwidth: all-reduce and broadcast over {len(keys)} ranks")
        port = gather({keys[0]: self._ask(keys[0]).free_port.remote()} if not failures else {}, timeout_s=PAIR_S)
        failures |= port.failures
        if not failures:
            budget_s, address = SWEEP_BUDGET_S[self._accelerator], self._nodes[0].address
            members = [Member(rank, len(keys), address, port.results[keys[0]]) for rank in range(len(keys))]
            calls = zip(keys, members, strict=True)
            answers = gather(
                {key: self._ask(key).sweep.remote(member, budget_s) for key, member in calls}, timeout_s=SWEEP_S
            )
            failures = answers.failures
        if failures:
            said = [f"{self._nodes[node].name} rank {rank}: {reason}" for (node, rank), reason in failures.items()]
            return [], f"{len(failures)} of {len(keys)} ranks failed: {'; '.join(said[:3])}"
        points = answers.results[keys[0]]
        return [SweepPoint(name, size, len(keys), seconds) for name, size, seconds in points], ""

    def _ready(self, keys: Sequence[Key]) -> dict[Key, str]:
        """Starts ranks that do not run; returns why some failed to start."""
        new = [key for key in dict.fromkeys(keys) if key not in self._workers]
        if new:
            self._note(f"links: loading torch into {len(new)} workers")
        for key in new:
            node = self._nodes[key[0]]
            options = {
                "num_cpus": 0,
                "num_gpus": 0 if self._accelerator == "cpu" else 1,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
            }
            worker: Any = LinkWorker
            self._workers[key] = worker.options(**options).remote(self._accelerator, node.address)
        failures = gather({key: self._ask(key).load.remote() for key in new}, timeout_s=READY_S).failures
        self._kill(failures)
        return failures

    def _ask(self, key: Key) -> Any:
        return self._workers[key]

    def _kill(self, keys: Iterable[Key]) -> None:
        for key in keys:
            ray.kill(self._workers.pop(key))
