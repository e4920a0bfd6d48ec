"""Writes the numbers and the samples of a step."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import PydanticSerializationError, to_json

from ray_rl.errors import RecordError
from ray_rl.metrics.modes import make_folder
from ray_rl.metrics.samples import first_sample
from ray_rl.metrics.text import Sample
from ray_rl.metrics.whole_pieces import PieceFile, complete, discard, explained, write_partial, write_whole
from ray_rl.types import Example, Rollout, RolloutGroup, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


COMMON_IDS = 1 << 18
"""Larger than the vocabulary of most models."""


class JsonlSink:
    """`metrics.jsonl`: one strict JSON object per step, on disk when `write` returns. nan and inf become null."""

    def __init__(self, path: Path) -> None:
        self._file = PieceFile(path, keep=True)

    def write(self, values: Mapping[str, float]) -> None:
        """Appends one line.

        Raises:
            RecordError: the line does not fit on the disk; earlier lines are intact.
        """
        self._file.append(f"{strict_json(values)}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardSink:
    """Writes TensorBoard scalars without torch and TensorFlow. The tag is the metric's key.

    It does not use TensorBoard's own event writer: its thread ends at a full disk, and then `flush` never returns.
    """

    def __init__(self, folder: Path, *, first_step: int = 1) -> None:
        """Starts a file. TensorBoard then ignores values of `first_step` and later steps in older files."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        with explained(folder):
            make_folder(folder, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{first_step}"
        self._file = PieceFile(folder / name, keep=False)
        self._add(wall_time=time.time(), file_version="brain.Event:2")
        if first_step > 1:
            self._add(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, values: Mapping[str, float]) -> None:
        """Adds all values at `values["step"]`.

        Raises:
            RecordError: the values do not fit on the disk.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items() if key != "step"]
        self._add(wall_time=time.time(), step=int(values["step"]), summary=Summary(value=scalars))

    def close(self) -> None:
        """Closes the event file."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(**fields).SerializeToString())
        self._file.append(record.getvalue())


class Records(Protocol):
    """The examples that a step was trained on, for files and for people. Each kind of training has its own."""

    def lines(self, step: int) -> Iterator[bytes]:
        """Yields one strict JSON object for each example, each with a newline at its end."""

    def samples(self, count: int, answers: tuple[str, ...]) -> tuple[str, list[Sample]]:
        """Returns a title and at most `count` examples for the console.

        Args:
            count: the largest number of examples.
            answers: names of the columns that may hold the reference answer, the best first.
        """

    @property
    def tokens(self) -> int:
        """The number of tokens in the examples, for the throughput."""


@dataclass(frozen=True, slots=True)
class RolloutRecords:
    """The rollouts of a step, ordered by prompt."""

    groups: Sequence[RolloutGroup]
    advantages_R: Sequence[float] | None = None
    """One advantage for each rollout, in the order of `groups`; None before they are known."""

    def lines(self, step: int) -> Iterator[bytes]:
        """Yields one strict JSON object for each rollout."""
        rollouts = [(group, rollout) for group in self.groups for rollout in group.rollouts]
        known = self.advantages_R
        advantages = [None] * len(rollouts) if known is None else [float(value) for value in known]
        for (group, rollout), advantage in zip(rollouts, advantages, strict=True):
            record = _strict_bytes(_record(step, group, rollout, advantage)).removesuffix(b"}")
            yield b'%b,"token_ids":[%b]}\n' % (record, _joined(rollout.token_ids))

    def samples(self, count: int, answers: tuple[str, ...]) -> tuple[str, list[Sample]]:
        """Returns the first completion of each of the first prompts."""
        chosen = [first_sample(group, answers) for group in self.groups[:count]]
        return f"first completion of {len(chosen)} of {len(self.groups)} prompts", chosen

    @property
    def tokens(self) -> int:
        """The number of sampled tokens."""
        return sum(rollout.sampled_tokens for group in self.groups for rollout in group.rollouts)


@dataclass(frozen=True, slots=True)
class ExampleRecords:
    """The examples of a step, in their order."""

    examples: Sequence[Example]
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What the update found for an example, by its id and then by name: rewards or scores."""

    def lines(self, step: int) -> Iterator[bytes]:
        """Yields one strict JSON object for each example."""
        for example in self.examples:
            record = {
                "step": step,
                "id": example.id,
                "prompt": example.prompt,
                "answers": example.texts,
                "label": example.label,
                "margin": example.margin,
                "prompt_tokens": len(example.prompt_ids),
                "tokens": [len(answer.token_ids) for answer in example.answers],
                "trained_tokens": [int(answer.loss_mask.sum()) for answer in example.answers],
            }
            known = {name: value for name, value in record.items() if value is not None}
            known |= self.values.get(example.id, {})
            yield _strict_bytes(known) + b"\n"

    def samples(self, count: int, answers: tuple[str, ...]) -> tuple[str, list[Sample]]:
        """Returns nothing: examples do not change during a run, which shows one before it starts."""
        return "", []

    @property
    def tokens(self) -> int:
        """The number of tokens of all prompts and answers."""
        return sum(
            len(example.prompt_ids) + sum(len(answer.token_ids) for answer in example.answers)
            for example in self.examples
        )


@dataclass(frozen=True, slots=True)
class _Begun:
    """A file that a thread writes."""

    path: Path
    records: Records
    written: Future[None]


class RecordSink:
    """`rollouts/step_000012.jsonl` or `examples/...`: the records of one step, one on each line."""

    def __init__(self, folder: Path) -> None:
        with explained(folder):
            make_folder(folder, exist_ok=True)
        self._folder = folder
        self._appending = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray-rl-records")
        self._begun: _Begun | None = None

    def begin(self, step: int, records: Records) -> None:
        """Starts to write the file of one step in a thread; the file gets its name by `write` with the same records.

        It takes a second for a large step, in which the event loop continues. What was begun before is discarded.
        """
        self.discard()
        path = self._path(step)
        self._begun = _Begun(path, records, self._thread.submit(write_partial, path, records.lines(step)))

    def write(self, step: int, records: Records) -> Path:
        """Writes the file of one step, or completes it if it was begun, and returns its path.

        Args:
            step: number of the step, from 1.
            records: the examples that were trained on.

        Raises:
            RecordError: the samples do not fit on the disk; the message names the temporary file that has them.
        """
        path = self._path(step)
        try:
            begun = self._begun
            if begun is not None and begun.records is records and begun.path == path:
                self._begun = None
                begun.written.result()  # bound: a thread writes one file, as this function otherwise does
                complete(path)
            else:
                self.discard()
                write_whole(path, records.lines(step))
        except RecordError as error:
            kept = self._keep_elsewhere(path.name, records.lines(step))
            raise RecordError(f"{error}. The samples of step {step} are {kept}") from error
        return path

    def add_failed(self, step: int, records: Records) -> Path:
        """Appends records of a failing step to `step_000012.failed.jsonl`. Thread-safe.

        Raises:
            RecordError: the samples do not fit on the disk.
        """
        path = self._folder / f"step_{step:06d}.failed.jsonl"
        with self._appending:
            file = PieceFile(path, keep=True)
            try:
                file.append(b"".join(records.lines(step)))
            finally:
                file.close()
        return path

    def discard(self) -> None:
        """Removes a file that was begun and is not complete: its step is not trained."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.written.exception()  # bound: a thread writes one file
            discard(begun.path)

    def close(self) -> None:
        """Ends the thread, and discards what was begun."""
        self.discard()
        self._thread.shutdown()

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}.jsonl"

    def _keep_elsewhere(self, name: str, lines: Iterator[bytes]) -> str:
        """Writes the lines to a temporary file and returns its path, or why they are lost."""
        try:
            path = Path(tempfile.mkdtemp(prefix="ray_rl-")) / name
            write_whole(path, lines)
        except (OSError, RecordError):
            return "lost: the folder for temporary files is also full"
        return f"in {path}"


def _joined(token_ids: NDArray[np.int32]) -> bytes:
    """Returns token ids, all >= 0, as text with "," between them.

    There are millions in each step, and formatting them one by one was most of the driver's own time.
    """
    try:
        found = _texts(COMMON_IDS)[token_ids]
    except IndexError:
        found = _texts(1 << int(token_ids.max()).bit_length())[token_ids]
    return found.tobytes().translate(None, b"\0")[:-1]  # numpy fills strings with zero bytes


@cache
def _texts(count: int) -> NDArray[np.generic]:
    """Returns the numbers below `count`, each with "," after it.

    Up to seven digits they have the type of integers of eight bytes, which numpy looks up much faster than strings.
    """
    import numpy as np

    texts = np.array([f"{number}," for number in range(count)], np.bytes_)
    return texts.astype("S8").view(np.uint64) if texts.itemsize <= 8 else texts


def _record(step: int, group: RolloutGroup, rollout: Rollout, advantage: float | None) -> dict[str, Any]:
    """Returns the record of a rollout, without its tokens."""
    columns = {name: value for name, value in group.prompt.columns.items() if _is_json(value)}
    return {
        "step": step,
        "prompt_id": group.prompt.id,
        "prompt": group.prompt.text,
        "columns": columns,
        "completion": rollout.text,
        "reward": rollout.total_reward,
        "reward_parts": rollout.reward_parts,
        "advantage": advantage,
        "finish_reason": rollout.stop,
        "length": rollout.sampled_tokens,
        "versions": version_spans(rollout.versions),
        **({"turns": [_turn(each) for each in rollout.turns]} if any(each.metrics for each in rollout.turns) else {}),
    }


def _turn(turn: Turn) -> dict[str, Any]:
    """Returns the record of a turn of an episode: what its environment said, and what the policy answered."""
    return {
        "messages": [{"role": message.role, "content": message.content} for message in turn.messages],
        "completion": turn.completion.text,
        "reward": turn.reward,
        "tool_calls": [asdict(call) for call in turn.tool_calls],
        "metrics": dict(turn.metrics),
    }


def version_spans(versions: NDArray[np.int32]) -> list[list[int]]:
    """Returns runs of equal versions as [version, tokens]: [3, 3, 4] gives [[3, 2], [4, 1]]."""
    starts = [0, *((versions[1:] != versions[:-1]).nonzero()[0] + 1).tolist(), len(versions)]
    return [[int(versions[start]), end - start] for start, end in pairwise(starts) if start < end]


def _strict_bytes(value: Any) -> bytes:
    """Returns what `strict_json` does, without spaces and several times as fast: most samples are long."""
    try:
        return to_json(value, inf_nan_mode="null")
    except PydanticSerializationError:  # a lone surrogate
        return strict_json(value).encode(errors="backslashreplace")


def strict_json(value: Any) -> str:
    """Returns JSON that every parser reads: nan and inf, which JSON does not have, become null.

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
    """Returns whether a column can be written as JSON: records leave out images, arrays and dates of a data set."""
    match value:
        case None | str() | bool() | int() | float():
            return True
        case list() | tuple():
            return all(_is_json(item) for item in value)
        case Mapping():
            return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
        case _:
            return False
