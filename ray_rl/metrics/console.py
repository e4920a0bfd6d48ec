"""Shows the progress of a run to a person.

On a terminal there is a live line with the current activity, and finished lines scroll above it. In a file or a pipe
there are plain lines without control characters, and a heartbeat line while something takes long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TextIO

from rich import box
from rich.console import Console, ConsoleRenderable
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ray_rl.metrics.output import unbreakable
from ray_rl.metrics.text import Sample, Status, duration, printable

PLAIN_WIDTH = 120
"""Width of a table that is not printed to a terminal."""
ANSWER_WIDTH, PARTS_WIDTH = 20, 24
"""The most columns of a reference answer, and of the scores of the reward functions."""
SAMPLE_CHARACTERS = 400
"""The most characters of a prompt or a completion in a table."""


class RunConsole:
    """Writes one run's progress to one stream. Thread-safe."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Makes a console for a stream.

        Args:
            stream: the stream; None is standard output.
        """
        is_standard = stream is None or stream is sys.stdout
        self._stream = unbreakable(sys.stdout if stream is None else stream)
        make = partial(Console, file=self._stream, highlight=False, markup=False, emoji=False, force_jupyter=False)
        self._console = make()
        self.is_live = self._stream.isatty() and not self._console.is_dumb_terminal
        """Whether this is a terminal that can redraw a line."""
        if not self.is_live:
            self._console = make(width=PLAIN_WIDTH, force_terminal=False, color_system=None)
        self._redirects = is_standard
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """Prints one line."""
        self._print(Text(text, style="dim"))

    def watch(self, status: Callable[[], Status | None], *, steps: int, left_s: Callable[[], float | None]) -> None:
        """Starts the live line, on a terminal.

        Args:
            status: returns what the run is doing; called from another thread.
            steps: number of steps of the run.
            left_s: returns the seconds until the run ends, None while unknown.
        """
        if not self.is_live:
            return
        spinner = Spinner("line", style="cyan")
        self._live = Live(
            get_renderable=lambda: _live_line(spinner, status(), steps=steps, left_s=left_s()),
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=self._redirects,
            redirect_stderr=self._redirects,
        )
        self._live.start()

    def heartbeat(self, status: Status) -> None:
        """Prints what the run waits for, if no live line shows it."""
        if not self.is_live:
            self._print(Text(str(status)))

    def step(self, fields: Sequence[tuple[str, str]]) -> None:
        """Prints one line of labels and values; on a terminal, only the first ones that fit."""
        line = Text()
        for label, value in fields:
            field = Text("  " if line else "")
            field.append(f"{label} ", style="dim")
            field.append(value, style="bold green" if label == "reward" else "")
            if self.is_live and line and line.cell_len + field.cell_len > self._console.width:
                break
            line.append_text(field)
        self._print(line)

    def samples(self, title: str, samples: Sequence[Sample]) -> None:
        """Prints a table of prompts, completions and rewards."""
        table = Table(
            box=box.SIMPLE_HEAD if self.is_live else box.ASCII2,
            show_lines=not self.is_live,
        )
        table.add_column("prompt", ratio=2, overflow="fold")
        table.add_column("completion", ratio=3, overflow="fold")
        table.add_column("answer", overflow="fold", max_width=ANSWER_WIDTH)
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column("parts", overflow="fold", max_width=PARTS_WIDTH)
        for sample in samples:
            parts = "\n".join(f"{name} {_number(value)}" for name, value in sample.parts.items())
            table.add_row(
                self._text(sample.prompt),
                self._text(sample.completion),
                self._text("-" if sample.answer is None else sample.answer),
                Text(_number(sample.reward), style="green"),
                Text(parts),
            )
        self._print(Text(title, style="bold"))
        self._print(table)

    def summary(self, title: str, rows: Sequence[tuple[str, str]], *, failed: bool) -> None:
        """Prints the summary at the end. Lines are not wrapped, so that commands and paths can be copied."""
        width = max((len(label) for label, _ in rows), default=0)
        self._print(Text(title, style="bold red" if failed else "bold green"))
        for label, value in rows:
            self._print(Text.assemble((f"  {label:{width}}  ", "dim"), value))

    def close(self) -> None:
        """Removes the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _text(self, text: str) -> Text:
        return Text(printable(text, encoding=self._stream.encoding or "utf-8", limit=SAMPLE_CHARACTERS))

    def _print(self, what: ConsoleRenderable) -> None:
        soft_wrap = isinstance(what, Text)
        if self.is_live:
            self._console.print(what, soft_wrap=soft_wrap)
            return
        with self._console.capture() as capture:
            self._console.print(what, soft_wrap=soft_wrap)
        # bound: reads a string, does not wait
        self._stream.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
        self._stream.flush()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _live_line(spinner: Spinner, status: Status | None, *, steps: int, left_s: float | None) -> ConsoleRenderable:
    line = Table.grid(padding=(0, 1))
    cells: list[ConsoleRenderable] = [spinner]
    if status is not None and status.step is not None:
        cells.append(ProgressBar(total=steps, completed=status.step - 1, width=8))
        cells.append(Text(f"{status.step}/{steps}"))
    if status is not None:
        detail = f"  {status.detail}" if status.detail else ""
        cells.append(Text(f"{status.doing}  {duration(status.age_s)}{detail}", overflow="ellipsis", no_wrap=True))
    if left_s is not None and left_s > 0:
        cells.append(Text(f"{duration(left_s)} left", style="dim", no_wrap=True))
    line.add_row(*cells)
    return line
