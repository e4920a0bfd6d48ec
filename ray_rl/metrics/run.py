"""The object with which the driver counts steps, times phases and logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from ray_rl.config.run import RunSection
from ray_rl.errors import Preempted, RecordError
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.endings import next_commands, shown
from ray_rl.metrics.metric import Metric, reduce_metrics
from ray_rl.metrics.phases import EVALUATE, Heartbeat, Phases, Span
from ray_rl.metrics.prometheus import GaugeSink
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.metrics.sinks import JsonlSink, Records, RecordSink, TensorBoardSink
from ray_rl.metrics.summary import Summary
from ray_rl.metrics.text import Columns, Sample, Status, step_fields
from ray_rl.metrics.trace import TraceWriter


class Run:
    """The progress of one run: its counters, its clock, and everything that is logged."""

    steps: int
    """Batches that the run trains on in all. The driver lowers it to end the run early."""
    step: int
    """Batches trained so far. Records carry the number of the batch they are about, from 1."""
    version: int
    """Policy version; 0 stands for the initial weights."""
    records: RecordSink
    """The records of the steps. `begin` starts to write those of the current step before `log`."""

    def __init__(
        self,
        settings: RunSection,
        folder: RunFolder,
        console: RunConsole,
        *,
        columns: Columns,
        records: Path,
        answers: tuple[str, ...] = (),
        uses: Mapping[str, str],
        step: int = 0,
        version: int = 0,
        gauges: GaugeSink | None = None,
        saved: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Opens the sinks and starts the heartbeat. Call `close` at the end, or use a `with` block.

        Args:
            settings: the section `run` of the configuration.
            folder: the run folder.
            console: the console that shows the progress.
            columns: the columns of the line that each step prints.
            records: the folder for the records of each step.
            answers: data columns that may hold the reference answer, the best first; see `answer_columns`.
            uses: how the exported model is used; see `next_commands`.
            step: number of batches already trained, if the run continues.
            version: the version of the policy after these batches.
            gauges: the sink that exports the values of `metrics.jsonl`.
            saved: returns the step of the newest checkpoint, for the summary at the end.
            clock: returns seconds from any origin, never decreasing.
        """
        assert settings.steps is not None, "run.epochs has not been resolved to steps"
        self.steps = settings.steps
        self.step, self.version = step, version
        self._settings = settings
        self._columns = columns
        self._answers, self._uses = answers, uses
        self._folder = folder
        self._saved = saved
        self._console = console
        self._clock = clock
        self._start_s = clock()
        self._summary = Summary(planned=self.steps, before=step, resumed_at=step, compared=columns.compared_keys)
        self._shown: tuple[str, list[Sample]] | None = None
        self._is_closed, self._has_lost_drawings = False, False
        self._jsonl = JsonlSink(folder.metrics_jsonl)
        self._tensorboard = TensorBoardSink(folder.tensorboard, first_step=step + 1)
        self._gauges = gauges
        self.records = RecordSink(records)
        self._trace = TraceWriter(folder.trace(first_step=step + 1), name=f"ray_rl {settings.name}")
        self._phases = Phases(clock, ended=self._trace_span)
        self._heartbeat = Heartbeat(
            self._phases.current,
            lambda span, age_s: console.heartbeat(self._describe(span, age_s)),
            every_s=settings.heartbeat_s,
            clock=clock,
        )
        console.watch(self._status, steps=self.steps, left_s=self._left_s)
        self._heartbeat.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(failed=error)

    @property
    def root(self) -> Path:
        """The run folder."""
        return self._folder.root

    def rewind(self, *, step: int, version: int) -> None:
        """Returns to the step of a checkpoint, and to the planned number of steps.

        Moves records of later steps aside, because they are trained again.
        """
        self.records.discard()
        self._jsonl.close()
        self._tensorboard.close()
        # For a restart from the first step, TensorBoard needs no instruction to forget older values.
        aside = self._folder.set_aside_after(step, others=() if step else (self._folder.tensorboard,))
        if aside is not None:
            self.tell(f"the records after step {step} were moved to {aside}")
        self._jsonl = JsonlSink(self._folder.metrics_jsonl)
        self._tensorboard = TensorBoardSink(self._folder.tensorboard, first_step=step + 1)
        self._summary.before = step - self._summary.steps
        self.step, self.version, self.steps = step, version, self._summary.planned
        self._phases.end_step()

    def advance(self) -> int:
        """Counts the step, and returns the next policy version, for the weights that were just trained."""
        self.version += 1
        return self.version

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Measures a part of the step (`time/<name>_s`), traces it, and lets the heartbeat name it.

        Phases may overlap, in threads or tasks. The time of `start`, before the first step, belongs to no step.
        """
        return self._phases.phase(name)

    def note(self, text: str) -> None:
        """Sets the progress of the current phase ("12 of 64 completions"). Printed in `start` or outside of phases."""
        if self._phases.note(text):
            self._console.say(text)

    def tell(self, text: str) -> None:
        """Prints an important line immediately, in any phase, and keeps it in `logs/driver.log`.

        A log that cannot be written (the disk is full, or the folder was removed) does not end the run.
        """
        self._console.say(text)
        line = f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}\n".encode(errors="backslashreplace")
        with suppress(OSError), (self._folder.logs / "driver.log").open("ab") as log:
            log.write(line)

    def log(self, metrics: Iterable[Metric], records: Records) -> dict[str, float]:
        """Ends the step: writes all its records, and returns the values in `metrics.jsonl`.

        Args:
            metrics: the metrics of all stages and ranks.
            records: the examples that were trained on.

        Raises:
            ValueError: a metric has a name that is computed here, or two kinds of reduction.
            RecordError: the disk is full; earlier records are intact.
        """
        self.step += 1
        step_s, phases_s = self._phases.end_step()
        values: dict[str, float] = {"step": self.step, "version": self.version}
        values |= {"time/step_s": step_s} | {f"time/{name}_s": seconds for name, seconds in phases_s.items()}
        training_s = step_s - phases_s.get(EVALUATE, 0.0)
        tokens = records.tokens
        values["throughput/tokens_per_s"] = tokens / training_s if training_s > 0 else 0.0
        for name, value in reduce_metrics(metrics).items():
            if name in values:
                raise ValueError(f"metric {name!r} is computed by Run.log; a stage must give its own another name")
            values[name] = float(value)
        self._write(values, records)
        self._summary.add(values, tokens=tokens)
        self._show(values, records)
        return values

    def close(self, *, failed: BaseException | None = None) -> None:
        """Shows the last samples and the summary, and closes everything. A second call does nothing.

        Args:
            failed: the exception that ended the run early.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._heartbeat.stop()
        self._console.close()
        self.records.close()
        self._jsonl.close()
        self._tensorboard.close()
        self._show_if_possible(self._trace.close)
        if failed is None and self._shown is not None:
            self._console.samples(*self._shown)
        self._console.summary(
            self._summary.title(total_s=self._clock() - self._start_s, failed=failed),
            [
                *self._summary.rows(folder=shown(self._folder.root)),
                *next_commands(
                    self._folder,
                    failed=failed,
                    saved=self._saved(),
                    steps=self.step,
                    uses=self._uses,
                    ended_early=self.steps < self._summary.planned,
                ),
            ],
            failed=failed is not None and not isinstance(failed, Preempted),
        )

    def _write(self, values: dict[str, float], records: Records) -> None:
        # The records come first: they are large, so a full disk fails here, and each step in metrics.jsonl has them.
        self.records.write(self.step, records)
        self._jsonl.write(values)
        self._show_if_possible(lambda: self._tensorboard.write(values))
        if self._gauges is not None:
            self._gauges.write(values)
        end_s = self._clock() - self._start_s
        duration_s = values["time/step_s"]
        args = {"version": self.version}
        self._trace.add("step", f"step {self.step}", start_s=end_s - duration_s, duration_s=duration_s, args=args)
        self._show_if_possible(self._trace.flush)

    def _show_if_possible(self, write: Callable[[], None]) -> None:
        """Writes to a sink that only displays the values of `metrics.jsonl`: its failure does not end the run."""
        try:
            write()
        except RecordError as error:
            if not self._has_lost_drawings:
                self._has_lost_drawings = True
                self.tell(f"{error}; the run continues without it")

    def _show(self, values: dict[str, float], records: Records) -> None:
        self._console.step(step_fields(values, self._columns, steps=self.steps))
        title, chosen = records.samples(self._settings.samples, self._answers)
        if not chosen:
            return
        self._shown = f"step {self.step}: {title}", chosen
        if self.step % self._settings.show_every == 0:
            self._console.samples(*self._shown)
            self._shown = None

    def _status(self) -> Status | None:
        span = self._phases.current()
        return None if span is None else self._describe(span, self._clock() - span.start_s)

    def _describe(self, span: Span, age_s: float) -> Status:
        is_in_step = self._phases.in_step and self.step < self.steps
        return Status(self.step + 1 if is_in_step else None, span.doing, age_s, span.detail)

    def _left_s(self) -> float | None:
        done = self._summary.steps
        return self._summary.step_s / done * (self.steps - self.step) if done else None

    def _trace_span(self, span: Span, end_s: float) -> None:
        start_s = span.start_s - self._start_s
        args = {"step": self.step + 1, "detail": span.detail}
        self._trace.add(span.name, span.name, start_s=start_s, duration_s=end_s - span.start_s, args=args)
