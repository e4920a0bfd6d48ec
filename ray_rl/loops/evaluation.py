"""Decides when held-out examples are evaluated, which step is the best one, and when a run ends early."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from ray_rl.checkpoint.best import FILE, has_stalled
from ray_rl.checkpoint.store import Checkpoint, read_json, write_json
from ray_rl.errors import CheckpointError, ConfigError
from ray_rl.metrics.metric import Metric, reduce_metrics
from ray_rl.types import Example

LOSS = "eval/loss"
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Standing:
    """The best evaluation at one moment."""

    step: int | None = None
    """The step after which it was made; None before the first evaluation."""
    value: float = 0.0
    """Its metric; 0 before the first evaluation."""
    since: int = 0
    """Number of later evaluations, which were not better."""
    by: str = LOSS
    """The name of the metric."""
    is_kept: bool = False
    """Whether the checkpoint of that step is kept, and exported at the end."""

    def write(self, folder: Path) -> None:
        """Writes `evaluation.json` into a checkpoint."""
        write_json(folder / FILE, asdict(self))


class Evaluation:
    """When to evaluate, and what the evaluations so far say."""

    def __init__(
        self,
        held_out: Sequence[Example],
        *,
        batch_size: int,
        every: int | None,
        best_by: str | None,
        patience: int | None,
        kept: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """Starts without an evaluation.

        Args:
            held_out: the examples that are not trained on; () for none.
            batch_size: number of examples of an evaluated batch.
            every: `run.evaluate_every`.
            best_by: `checkpoint.keep_best`.
            patience: `run.patience`.
            kept: returns the steps that have a checkpoint.
        """
        self._held_out, self._batch_size = held_out, batch_size
        self._every, self._best_by, self._patience, self._kept = every, best_by, patience, kept
        self._none = Standing(by=best_by or LOSS, is_kept=best_by is not None)
        self._standing = self._none

    def is_due(self, step: int, *, last: int) -> bool:
        """Returns whether held-out examples are evaluated after a step: every so many steps, and after the last one."""
        return bool(self._held_out) and (step == last or (self._every is not None and step % self._every == 0))

    @property
    def held_out(self) -> Sequence[Example]:
        """The examples that are not trained on."""
        return self._held_out

    def batches(self, examples: Sequence[Item]) -> list[Sequence[Item]]:
        """Returns examples, or what belongs to them, in batches."""
        return [examples[start : start + self._batch_size] for start in range(0, len(examples), self._batch_size)]

    def observe(self, metrics: Sequence[Metric], *, step: int) -> None:
        """Compares an evaluation after a step with the best one so far: by the metric of `keep_best`, else by the loss.

        A value that is not finite is never the best one.

        Raises:
            ConfigError: the evaluation has no such metric.
        """
        values, name = reduce_metrics(metrics), self._none.by
        if name not in values:
            raise ConfigError(
                f"checkpoint.keep_best={name}: the evaluation has no such metric; it has {', '.join(sorted(values))}"
            )
        value, best = values[name], self._standing
        if _is_better(name, value, best):
            self._standing = replace(self._none, step=step, value=value)
        else:
            self._standing = replace(best, since=best.since + 1)

    @property
    def best_step(self) -> int | None:
        """The step whose checkpoint is kept; None without `checkpoint.keep_best`, or before the first evaluation."""
        return None if self._best_by is None else self._standing.step

    @property
    def has_stalled(self) -> bool:
        """Whether `run.patience` evaluations in a row were not better than the best one."""
        return has_stalled(self._standing.since, self._patience)

    @property
    def verdict(self) -> str:
        """A text about the best evaluation."""
        best = self._standing
        seen = f"{best.by} was best after step {best.step}, {best.value:.4g}"
        return f"{seen}, and {best.since} evaluation{'s' if best.since > 1 else ''} since then were not better"

    def position(self) -> Standing:
        """Returns the best evaluation so far."""
        return self._standing

    def resume(self, folder: Path) -> None:
        """Continues from the best evaluation in a checkpoint.

        Starts without one if it was the best by another metric, or if its checkpoint is gone: a later step was better,
        and the run went back to before it.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        found, own = standing_of(folder), self._none
        is_gone = own.is_kept and found.step is not None and found.step not in self._kept()
        self._standing = own if is_gone or found.by != own.by else replace(found, is_kept=own.is_kept)


def standing_of(folder: Path) -> Standing:
    """Reads the best evaluation in the folder of a checkpoint.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    try:
        found = read_json(folder / FILE)
        step = found["step"]
        step = None if step is None else int(step)
        return Standing(step, float(found["value"]), int(found["since"]), by=found.get("by", LOSS))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / FILE}: not the best evaluation of a run ({error!r}); resume from another checkpoint"
        ) from error


def is_over(checkpoint: Checkpoint, *, steps: int, patience: int | None) -> bool:
    """Returns whether a run has no further step after a checkpoint: all are trained, or its evaluations have stalled.

    Raises:
        CheckpointError: the run has patience, and the checkpoint no best evaluation.
    """
    return checkpoint.step >= steps or (
        patience is not None and has_stalled(standing_of(checkpoint.folder).since, patience)
    )


def exported_after(checkpoint: Checkpoint, *, best_by: str | None) -> int:
    """Returns the step of the model that a run exports which ends with a checkpoint: the best one, or the last one.

    Raises:
        CheckpointError: the run keeps its best step, and the checkpoint has none.
    """
    best = None if best_by is None else standing_of(checkpoint.folder).step
    return checkpoint.step if best is None else best


def _is_better(name: str, value: float, best: Standing) -> bool:
    if not math.isfinite(value):
        return False
    is_lower_better = name.endswith(("loss", "entropy", "error"))
    return best.step is None or (value < best.value if is_lower_better else value > best.value)
