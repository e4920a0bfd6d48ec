"""Where the numbers and the samples of a step are written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.types import Rollout, RolloutGroup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class JsonlSink:
    """`metrics.jsonl`: one strict JSON object a step, on disk when `write` returns. nan and inf become null."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, values: Mapping[str, float]) -> None:
        """Appends one line."""
        self._file.write(strict_json(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardSink:
    """TensorBoard scalars, by TensorBoard's own event writer: no torch, no TensorFlow. The tag is the metric's key."""

    def __init__(self, folder: Path, *, first_step: int = 1) -> None:
        """Starts a file; where a run goes on, TensorBoard forgets what older files say of `first_step` and later."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        if first_step > 1:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, values: Mapping[str, float]) -> None:
        """Adds all values at `values["step"]`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items() if key != "step"]
        self._writer.add_event(
            Event(wall_time=time.time(), step=int(values["step"]), summary=Summary(value=scalars)),
        )
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class RolloutSink:
    """`rollouts/step_000012.jsonl`: every sample of a step, one a line, ordered by prompt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = _Numbers()

    def write(self, step: int, groups: Sequence[RolloutGroup], *, advantages_R: Sequence[float] | None = None) -> Path:
        """Writes the file of one step and returns its path.

        Args:
            step: number of the step, from 1.
            groups: the samples that were trained on.
            advantages_R: one advantage a rollout, ordered as in `groups`.
        """
        path = self._folder / f"step_{step:06d}.jsonl"
        rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
        advantages = [None] * len(rollouts) if advantages_R is None else [float(value) for value in advantages_R]
        with path.open("wb") as file:
            for (group, rollout), advantage in zip(rollouts, advantages, strict=True):
                record = strict_json(_record(step, group, rollout, advantage)).encode(errors="backslashreplace")
                numbers = self._numbers.joined(rollout.completion.token_ids)
                file.write(record.removesuffix(b"}") + b', "token_ids": [' + numbers + b"]}\n")
        return path


class _Numbers:
    """Token ids as text, looked up: millions a step, and number by number they were most of the driver's own time."""

    def __init__(self) -> None:
        self._size = 0
        self._texts: NDArray[np.bytes_] | None = None

    def joined(self, token_ids: NDArray[np.int32]) -> bytes:
        """The numbers from 0 upwards with ", " between them."""
        import numpy as np

        if not len(token_ids):
            return b""
        if self._texts is None or int(token_ids.max()) >= self._size:
            self._size = 2 * int(token_ids.max()) + 1
            self._texts = np.array([f"{number}, " for number in range(self._size)], np.bytes_)
        # numpy fills strings up to one width with zero bytes.
        return self._texts[token_ids].tobytes().replace(b"\0", b"")[:-2]


def _record(step: int, group: RolloutGroup, rollout: Rollout, advantage: float | None) -> dict[str, Any]:
    """All but the tokens."""
    completion = rollout.completion
    columns = {name: value for name, value in group.prompt.columns.items() if _is_json(value)}
    return {
        "step": step,
        "prompt_id": group.prompt.id,
        "prompt": group.prompt.text,
        "columns": columns,
        "completion": completion.text,
        "reward": rollout.reward,
        "reward_parts": rollout.reward_parts,
        "advantage": advantage,
        "finish_reason": completion.finish_reason,
        "length": len(completion.token_ids),
        "versions": version_spans(completion.versions),
    }


def version_spans(versions: NDArray[np.int32]) -> list[list[int]]:
    """Runs of equal versions as [version, tokens]: [3, 3, 4] gives [[3, 2], [4, 1]]."""
    return [[version, len(list(run))] for version, run in groupby(versions.tolist())]


def strict_json(value: Any) -> str:
    """JSON that every parser reads: null in place of nan and inf, which JSON does not have.

    Write it with `errors="backslashreplace"`: a lone surrogate is not UTF-8, and its backslash form is a JSON escape.
    """
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def _is_json(value: Any) -> bool:
    """Whether a column can be written: images, arrays and dates of a data set are left out of the record."""
    match value:
        case None | str() | bool() | int() | float():
            return True
        case list() | tuple():
            return all(_is_json(item) for item in value)
        case Mapping():
            return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
        case _:
            return False
