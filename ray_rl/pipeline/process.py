"""Runs each stage in a process of its own, to which the signals of the pipeline are passed on."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ray_rl.exit_codes import CHECKPOINTED
from ray_rl.isolation.family import DEATH_SIGNAL
from ray_rl.metrics.folder_lock import holder_of

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL_S = 0.1


class StopAsked(KeyboardInterrupt):
    """A signal asks the pipeline to end while no stage trains. As a KeyboardInterrupt it is not handled as an error."""


class StageProcess:
    """The process of the stage that trains. `listening` installs the handlers that pass signals on to it."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)  # later, the checks of another stage may have set variables
        self._process: subprocess.Popen[bytes] | None = None
        self.asked: signal.Signals | None = None
        """The first signal that arrived."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Passes signals on during the block. Closing the terminal only loses the output, also for the stages."""
        before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Runs a command to its end and returns its exit code, negative for the signal that killed it.

        If this process is killed, the command gets SIGTERM: the stage saves and ends, as on any other request to stop.
        """
        # Looked up before the fork: another thread may hold the loader's lock in it.
        prctl, pipeline = ctypes.CDLL(None).prctl, os.getpid()

        def end_with_pipeline() -> None:
            prctl(DEATH_SIGNAL, signal.SIGTERM)
            if os.getppid() != pipeline:  # it ended before we asked
                os._exit(CHECKPOINTED)

        self._process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_pipeline,
        )
        try:
            return self._process.wait()  # bound: as long as the run; a signal ends it
        finally:
            self._process = None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number)
        if self._process is None:
            raise StopAsked(self.asked.name)
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


def wait_for_release(folder: Path, *, limit_s: float, say: Callable[[str], None]) -> None:
    """Waits until no process trains in a run folder any more: that of a pipeline which was killed still saves.

    Args:
        folder: the run folder.
        limit_s: the limit. The stage that is started afterwards refuses a folder that is still in use.
        say: called once if there is such a process.
    """
    holder = holder_of(folder)
    if holder is None:
        return
    say(f"{folder}: process {holder.get('pid', '?')} still trains there; waiting at most {limit_s:g} s for its end")
    deadline = time.monotonic() + limit_s
    while holder_of(folder) is not None and time.monotonic() < deadline:
        time.sleep(POLL_S)
