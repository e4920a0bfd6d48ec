"""The position of a collector, in memory and on disk: its prompts, and the rollouts that are not trained on yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_rl.checkpoint.groups import prompt_from_json, prompt_to_json, read_groups, write_groups
from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.errors import CheckpointError
from ray_rl.metrics.metric import EffectiveFraction, Last, Maximum, Mean, Metric, Total
from ray_rl.types import Prompt, RolloutGroup

FOLDER = "rollouts"
"""Name of the collector's folder in a checkpoint."""
KINDS = {kind.__name__: kind for kind in (Mean, Total, Maximum, Last, EffectiveFraction)}


@dataclass(frozen=True, slots=True)
class Finished:
    """A group that is complete and scored."""

    number: int
    """Number of the prompt, in the order of admission."""
    group: RolloutGroup
    metrics: list[Metric]


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything that a collector needs to continue at this position."""

    source: Mapping[str, Any]
    """Position of the prompt source."""
    admitted: int
    """Number of prompts admitted since the start of the run."""
    accepted: int
    """Number of finished groups that count for a batch since the start of the run, with those already trained on."""
    in_flight: tuple[tuple[int, Prompt], ...]
    """Number and prompt of each group in flight, which is sampled again with the same seeds."""
    waiting: tuple[Finished, ...]
    """Groups that count for a batch and are not in one yet."""
    refused: tuple[Finished, ...]
    """Groups with equal rewards since the last batch, in dynamic sampling."""
    stale: int
    """Number of groups since the last batch that were dropped because they were too old."""

    def write(self, folder: Path) -> None:
        """Writes three files into a checkpoint.

        Raises:
            CheckpointError: the file system refuses, or JSON cannot represent a column of a prompt.
        """
        inner = folder / FOLDER
        write_json(
            inner / "collector.json",
            {
                "source": dict(self.source),
                "admitted": self.admitted,
                "accepted": self.accepted,
                "stale": self.stale,
                "under_way": [[number, prompt_to_json(prompt)] for number, prompt in self.in_flight],
                "waiting": _finished_to_json(self.waiting),
                "refused": _finished_to_json(self.refused),
            },
        )
        write_groups(inner, [each.group for each in (*self.waiting, *self.refused)])

    @classmethod
    def read(cls, folder: Path) -> Collected:
        """Reads the files of `write` from a checkpoint.

        Raises:
            CheckpointError: the checkpoint does not have the position of a collector.
        """
        inner = folder / FOLDER
        found = read_json(inner / "collector.json")
        groups = read_groups(inner)
        try:
            waiting, refused = found["waiting"], found["refused"]
            finished = [
                Finished(each["number"], group, [_metric(metric) for metric in each["metrics"]])
                for each, group in zip([*waiting, *refused], groups, strict=True)
            ]
            return cls(
                source=found["source"],
                admitted=found["admitted"],
                accepted=found["accepted"],
                in_flight=tuple((number, prompt_from_json(prompt)) for number, prompt in found["under_way"]),
                waiting=tuple(finished[: len(waiting)]),
                refused=tuple(finished[len(waiting) :]),
                stale=found["stale"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{inner}: cannot be read as the saved position of the rollouts: {error!r}; resume from another "
                "checkpoint"
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
