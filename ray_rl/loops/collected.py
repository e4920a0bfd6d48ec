"""Where a collector stood, on disk: position of the prompts, and rollouts that are not trained on yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray_rl.checkpoint.groups import prompt_from_json, prompt_to_json, read_groups, write_groups
from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.errors import CheckpointError
from ray_rl.metrics.metric import EffectiveFraction, Last, Maximum, Mean, Metric, Total
from ray_rl.rollout.collector import Collected, Finished

KINDS = {kind.__name__: kind for kind in (Mean, Total, Maximum, Last, EffectiveFraction)}


def write_collected(folder: Path, state: Collected) -> None:
    """Writes three files into a folder.

    Raises:
        CheckpointError: the file system refuses, or a prompt has a column that is not for JSON.
    """
    write_json(
        folder / "collector.json",
        {
            "source": dict(state.source),
            "admitted": state.admitted,
            "accepted": state.accepted,
            "stale": state.stale,
            "under_way": [[number, prompt_to_json(prompt)] for number, prompt in state.under_way],
            "waiting": _finished_to_json(state.waiting),
            "refused": _finished_to_json(state.refused),
        },
    )
    write_groups(folder, [each.group for each in (*state.waiting, *state.refused)])


def read_collected(folder: Path) -> Collected:
    """What `write_collected` was given.

    Raises:
        CheckpointError: the files are not its files.
    """
    found = read_json(folder / "collector.json")
    groups = read_groups(folder)
    try:
        waiting, refused = found["waiting"], found["refused"]
        finished = [
            Finished(each["number"], group, [_metric(metric) for metric in each["metrics"]])
            for each, group in zip([*waiting, *refused], groups, strict=True)
        ]
        return Collected(
            source=found["source"],
            admitted=found["admitted"],
            accepted=found["accepted"],
            under_way=tuple((number, prompt_from_json(prompt)) for number, prompt in found["under_way"]),
            waiting=tuple(finished[: len(waiting)]),
            refused=tuple(finished[len(waiting) :]),
            stale=found["stale"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: no state of a collector: {error!r}; resume from another checkpoint"
        ) from error


def _finished_to_json(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    return [
        {
            "number": each.number,
            "metrics": [{"kind": type(metric).__name__, **asdict(metric)} for metric in each.metrics],
        }
        for each in finished
    ]


def _metric(found: Mapping[str, Any]) -> Metric:
    return KINDS[found["kind"]](**{key: value for key, value in found.items() if key != "kind"})
