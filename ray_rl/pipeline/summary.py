"""The table at the end of a pipeline: every stage with the course of its metrics, from the files of its run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray_rl.config.loading.nearest import nearest
from ray_rl.metrics.step_records import step_records
from ray_rl.metrics.summary import EDGE_STEPS, edges
from ray_rl.metrics.text import duration
from ray_rl.pipeline.stages import Stage

USUAL = ("reward/mean", "eval/loss", "eval/accuracy")
"""Metrics that are shown if a stage names none, as far as it has them."""
COURSE = 24
"""Most characters of the course of a metric."""
BLOCKS, LETTERS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "_.-=+*#@"
"""Characters of eight heights, and others for streams that cannot encode the former."""


def summary(stages: Sequence[Stage], how: Mapping[str, str], *, encoding: str) -> list[str]:
    """Returns the lines of the table.

    Args:
        stages: the stages, all done.
        how: how each stage was done: "trained", "resumed", "done before".
        encoding: the encoding of the stream.
    """
    rows: list[tuple[str, ...]] = [("STAGE", "STATE", "STEPS", "TIME", "METRIC", "FIRST", "LAST", "COURSE")]
    for stage in stages:
        records = _records(stage.folder.metrics_jsonl)
        seconds = sum(record.get("time/step_s", 0.0) for record in records)
        begin = (stage.name, how[stage.name], str(_last_step(records)), duration(seconds))
        for metric in _metrics(stage, records, encoding=encoding):
            rows.append((*begin, *metric))
            begin = ("", "", "", "")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [
        "  ".join(text.rjust(width) if column in (5, 6) else text.ljust(width) for column, (text, width) in cells)
        for cells in ([*enumerate(zip(row, widths, strict=True))] for row in rows)
    ]
    models = [f"model of {stage.name}: {', '.join(stage.models)}" for stage in stages if stage.config.checkpoint.export]
    return [
        *(line.rstrip() for line in aligned),
        f"first and last: means of at most {EDGE_STEPS} steps; course: all steps, from the lowest to the highest value",
        *models,
    ]


def _metrics(stage: Stage, records: Sequence[Mapping[str, Any]], *, encoding: str) -> Iterator[tuple[str, ...]]:
    """Yields name, first value, last value and course of each metric that the stage shows; one row at least."""
    known = {name for record in records for name in record}
    asked = stage.settings.show
    names = [name for name in USUAL if name in known] if asked is None else asked
    for name in names:
        values = [float(record[name]) for record in records if isinstance(record.get(name), int | float)]
        if not values:
            near = nearest(name, sorted(known))
            yield name, "", "", "no such metric" + (f"; {near}?" if near else "")
            continue
        first, last, _ = edges(values)
        yield name, f"{first:.3f}", f"{last:.3f}", course(values, encoding=encoding)
    if not names:
        yield "", "", "", ""


def course(values: Sequence[float], *, encoding: str) -> str:
    """Returns a line of characters whose heights are the means of consecutive values, from the lowest to the highest.

    Args:
        values: the values of all steps.
        encoding: the encoding of the stream.
    """
    count = min(COURSE, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [statistics.fmean(values[start:end]) for start, end in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    try:
        BLOCKS.encode(encoding)
        heights = BLOCKS
    except UnicodeEncodeError:
        heights = LETTERS
    return "".join(heights[int((value - low) / span * (len(heights) - 1) + 0.5) if span > 0 else 0] for value in means)


def _records(file: Path) -> list[dict[str, Any]]:
    """Returns the records of a run; none if there is no file."""
    try:
        return step_records(file)
    except FileNotFoundError:
        return []


def _last_step(records: Sequence[Mapping[str, Any]]) -> int:
    return int(records[-1]["step"]) if records else 0
