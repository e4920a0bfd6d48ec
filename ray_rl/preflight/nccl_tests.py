"""Reads and judges the output of NVIDIA's nccl-tests, which measure the links between the GPUs of one node."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from ray_rl.preflight.finding import Finding
from ray_rl.preflight.link_verdicts import SLOW

PROGRAMS = ("all_reduce_perf", "broadcast_perf")


@dataclass(frozen=True, slots=True)
class NcclTest:
    """The result of one program on one node."""

    bus_gb_s: Mapping[int, float]
    """Out-of-place bus bandwidth by bytes; empty if the program failed or is not installed."""
    trouble: str = ""
    """Why the program failed; "missing" if it is not in PATH; empty if it worked."""


MISSING = "missing"


def parse(output: str) -> dict[int, float]:
    """Returns the out-of-place bus bandwidth in GB/s, by bytes.

    Columns are found by their names in the header: only some versions have one for the root.

    Raises:
        ValueError: there is no table, a row does not fit its header, or a result was wrong.
    """
    names: list[str] = []
    speeds: dict[int, float] = {}
    for line in output.splitlines():
        words = line.split()
        if words[:1] == ["#"] and "busbw" in words and "size" in words:
            names = words[1:]
        elif words and words[0].isdecimal() and names:
            if len(words) != len(names):
                raise ValueError(f"a row has {len(words)} columns and the header {len(names)}: {line.strip()}")
            wrong = [word for name, word in zip(names, words, strict=True) if name == "#wrong"]
            if any(word not in ("0", "N/A") for word in wrong):
                raise ValueError(f"#wrong is not 0: {line.strip()}")
            speeds[int(words[0])] = float(words[names.index("busbw")])
    if not speeds:
        raise ValueError(f"no table in what it printed: {' '.join(output.split())[-200:]}")
    return speeds


def judge_nccl_tests(results: Mapping[str, Mapping[str, NcclTest]]) -> list[Finding]:
    """Returns findings about the programs that ran.

    Args:
        results: the results of the nodes with GPUs, by node and program.
    """
    return [finding for program in PROGRAMS for finding in _judge(program, results)]


def _judge(program: str, results: Mapping[str, Mapping[str, NcclTest]]) -> list[Finding]:
    here = {node: tests[program] for node, tests in results.items() if program in tests}
    missing = [node for node, test in here.items() if test.trouble == MISSING]
    findings = [
        Finding(program, "fail", test.trouble, "run it there by hand with NCCL_DEBUG=INFO", node)
        for node, test in here.items()
        if test.trouble not in ("", MISSING)
    ]
    best = {node: max(test.bus_gb_s.values()) for node, test in here.items() if test.bus_gb_s}
    for node, rate in best.items():
        others = [other for name, other in best.items() if name != node]
        if others and rate < SLOW * statistics.median(others):
            detail = f"{rate:.3g} GB/s; the median of the other nodes is {statistics.median(others):.3g} GB/s"
            remedy = "look at the links between its GPUs: nvidia-smi topo -m, nvidia-smi nvlink -s"
            findings.append(Finding(program, "warn", detail, remedy, node))
    if best and not findings:
        findings.append(Finding(program, "ok", f"{min(best.values()):.3g} to {max(best.values()):.3g} GB/s in a node"))
    if missing:
        where = "any node" if len(missing) == len(here) else ", ".join(missing)
        findings.append(Finding(program, "ok", f"not in PATH on {where} (optional): links are measured without"))
    return findings
