"""`ray-rl doctor` checks whether this machine, or a Ray cluster, can run ray_rl: one line per check, with a remedy."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray_rl.cli.arguments import add_overrides
from ray_rl.errors import ConfigError, UserError
from ray_rl.exit_codes import DONE, FAILED
from ray_rl.program import program
from ray_rl.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ray_rl.cli.arguments import Commands
    from ray_rl.config.run import RunConfig
    from ray_rl.preflight.finding import Finding
    from ray_rl.preflight.node_verdicts import Report

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "doctor",
        help="check versions, cores, memory, disk, GPUs and Ray's settings; with --cluster all nodes of a cluster",
        description="Checks versions and hardware and prints one line per check. Exit code 1 if a check fails.",
        epilog="example: ray-rl doctor --cluster configs/ppo_math_llama3.3-70b_48xh100.yaml cluster.address=auto",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list, or with --cluster an object")
    parser.add_argument(
        "--cluster",
        metavar="CONFIG",
        help="check every node of the Ray cluster at cluster.address of this run, and measure the links between them",
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="check nothing, but remove files of your killed runs from the folder for temporary files and from "
        "/dev/shm; files that a live process uses are kept",
    )
    add_overrides(parser, "cluster.address=auto; with --cluster")
    parser.set_defaults(command=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    """Prints the report; returns 1 if a check fails, else 0.

    Raises:
        UserError: there are values without --cluster, or the configuration is wrong or names no cluster.
        ClusterError: the cluster cannot be joined.
    """
    if arguments.clean:
        return _clean(arguments)
    if arguments.cluster is not None:
        return _doctor_of_cluster(arguments.cluster, arguments.overrides, is_json=arguments.json)
    if arguments.overrides:
        raise UserError(f"{arguments.overrides[0]}: values belong to a configuration; add --cluster CONFIG")

    from ray_rl.preflight.machine import findings

    report = list(findings())
    if arguments.json:
        print(json.dumps([_as_object(finding) for finding in report], indent=2))
    elif sys.stdout.isatty():
        _print_table(report)
    else:
        _print_lines(report)
    return _exit_code(report)


def _clean(arguments: argparse.Namespace) -> int:
    """Removes and prints files of killed runs; returns 1 if a file could not be removed."""
    if arguments.cluster is not None or arguments.overrides:
        raise UserError("--clean works on this machine only; leave --cluster and its values out")

    from ray_rl.cluster.scratch import remove_leftovers

    removed, resists = remove_leftovers()
    found = [*removed, *resists]
    if arguments.json:
        shown = [{"path": str(file.path), "bytes": file.size_bytes, "removed": file in removed} for file in found]
        print(json.dumps(shown, indent=2))
        return FAILED if resists else DONE
    for verb, files_of in (("removed", removed), ("could not remove", resists)):
        for leftover in files_of:
            print(f"{verb} {leftover.path} ({leftover.size_bytes / MIB:.1f} MiB)")
    if removed:
        print(f"{len(removed)} removed, {sum(leftover.size_bytes for leftover in removed) / MIB:.1f} MiB in all")
    elif not resists:
        print("nothing to remove: there are no files of killed runs")
    return FAILED if resists else DONE


def _doctor_of_cluster(path: str, overrides: Sequence[str], *, is_json: bool) -> int:
    config = _config(path, overrides)

    from ray_rl.app.before_start import check_installed
    from ray_rl.cluster.environment import prepare_environment

    check_installed()
    prepare_environment(local=False)
    from ray_rl.preflight.nodes import look_at_cluster

    # Not to standard output, which is for the report.
    report = look_at_cluster(
        config.cluster, config.run.dir, lambda text: print(f"doctor: {text}", file=sys.stderr, flush=True)
    )
    if is_json:
        print(json.dumps(_report_object(report), indent=2))
        return _exit_code(report.findings)
    if sys.stdout.isatty():
        _print_table(report.findings)
    else:
        _print_lines(report.findings)
    _print_speeds(report)
    return _exit_code(report.findings)


def _config(path: str, overrides: Sequence[str]) -> RunConfig:
    from ray_rl.config.loading.load import load_config

    config = load_config(path, list(overrides))
    if config.cluster.address is None:
        raise ConfigError(
            "cluster.address=null: there is no cluster to check; set cluster.address=auto on one of its nodes, or "
            f"host:port of its head. For this machine alone: {program()} doctor"
        )
    return config


def _exit_code(findings: Sequence[Finding]) -> int:
    return FAILED if any(finding.verdict == "fail" for finding in findings) else DONE


def _as_object(finding: Finding) -> dict[str, str]:
    """Returns the finding as a JSON object, without the node if it has none."""
    return {key: value for key, value in asdict(finding).items() if key != "node" or value}


def _report_object(report: Report) -> dict[str, Any]:
    return {
        "findings": [_as_object(finding) for finding in report.findings],
        "bandwidth": [asdict(point) | {"bus_gb_s": point.bus_gb_s} for point in report.bandwidth],
        "pairs": [asdict(pair) for pair in report.pairs],
    }


def _print_lines(report: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in report)
    for finding in report:
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        node = f"{finding.node}: " if finding.node else ""
        print(f"{finding.verdict:4}  {finding.name:{width}}  {node}{finding.detail}{remedy}")


def _print_table(report: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "seen", "remedy", box=None, pad_edge=False)
    for finding in report:
        verdict = Text(finding.verdict, style=_COLOURS[finding.verdict])
        detail = f"{finding.node}: {finding.detail}" if finding.node else finding.detail
        table.add_row(verdict, finding.name, Text(detail), Text(finding.remedy))
    Console().print(table)


def _print_speeds(report: Report) -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=120, no_color=True, highlight=False)
    if report.bandwidth:
        _print_bandwidth(report, console)
    if report.pairs:
        _print_pairs(report, console)


def _print_bandwidth(report: Report, console: Console) -> None:
    from rich.table import Table

    from ray_rl.preflight.link_verdicts import size_text

    console.print(f"\nbus bandwidth over {report.bandwidth[0].ranks} ranks, GB/s (as nccl-tests define it)")
    operations = list(dict.fromkeys(point.operation for point in report.bandwidth))
    speeds = {(point.operation, point.bytes): f"{point.bus_gb_s:.3g}" for point in report.bandwidth}
    table = Table("size", *operations, box=None, pad_edge=False)
    for size in sorted({point.bytes for point in report.bandwidth}):
        table.add_row(size_text(size), *(speeds.get((operation, size), "-") for operation in operations))
    console.print(table)


def _print_pairs(report: Report, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print("\nlinks between nodes, slowest first")
    has_rails = any(pair.rail for pair in report.pairs)
    table = Table("from", "to", *(["GPU"] if has_rails else []), box=None, pad_edge=False)
    for title in ("GB/s", "GB/s back", "round trip, ms"):
        table.add_column(title, justify="right")
    for pair in sorted(report.pairs, key=lambda pair: pair.slower_gb_s):
        rail = [str(pair.rail)] if has_rails else []
        numbers = (f"{pair.forth_gb_s:.3g}", f"{pair.back_gb_s:.3g}", f"{1000 * pair.round_trip_s:.3g}")
        table.add_row(*map(Text, (*pair.nodes, *rail, *(("none",) * 3 if pair.trouble else numbers))))
    console.print(table)
