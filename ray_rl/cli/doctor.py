"""`ray-rl doctor`: is this machine fit for a run? One line a check, with a verdict and a remedy."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray_rl.cli.arguments import Commands
    from ray_rl.cli.checks import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "doctor",
        help="look at versions, cores, memory, disk, GPUs and Ray's settings",
        description="Looks at versions and hardware, a line each with its verdict. Exit code 1 if one of them is fail.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects instead")
    parser.set_defaults(command=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    """Prints the report; 1 if a verdict is fail, else 0."""
    from ray_rl.cli.checks import findings

    report = list(findings())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in report], indent=2))
    elif sys.stdout.isatty():
        _print_table(report)
    else:
        _print_lines(report)
    return 1 if any(finding.verdict == "fail" for finding in report) else 0


def _print_lines(report: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in report)
    for finding in report:
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        print(f"{finding.verdict:4}  {finding.name:{width}}  {finding.detail}{remedy}")


def _print_table(report: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "seen", "remedy", box=None, pad_edge=False)
    for finding in report:
        verdict = Text(finding.verdict, style=_COLOURS[finding.verdict])
        table.add_row(verdict, finding.name, Text(finding.detail), Text(finding.remedy))
    Console().print(table)
