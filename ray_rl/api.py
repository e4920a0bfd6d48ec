"""The public interface of the package, for scripts and notebooks: `from ray_rl import load_config, plan, train`.

    config = load_config("configs/grpo_addition_smollm2-135m_cpu.yaml", ["run.name=first", "run.steps=3"])
    print(plan(config))
    trained = train(config)
    print(trained.metrics()[-1]["reward/mean"])

Loads without torch and Ray. docs/python_api.md describes it for users.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TextIO

from ray_rl.app.own_process import train_command
from ray_rl.config.loading.load import load_config
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError, Preempted, RayRLError, UserError
from ray_rl.exit_codes import BAD_INPUT, CHECKPOINTED, DONE
from ray_rl.metrics.step_records import step_records
from ray_rl.planner.assess import Assessment

__all__ = ["Planned", "RunConfig", "Trained", "load_config", "plan", "train"]

MESSAGE = "ray-rl: "
"""How the last message of a command begins."""
TAIL_LINES = 50
READ_S = 10.0
"""How long the output of a process is still read after its end: a process that it started may hold the pipe."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan of a run: place and memory of each worker, and the verdict. Its text is that of `ray-rl plan`."""

    assessment: Assessment
    """The numbers: `layout`, `memories`, `problems`."""
    text: str

    @property
    def fits(self) -> bool:
        """True if the memory of every worker suffices."""
        return self.assessment.fits

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that trained to its end."""

    folder: Path
    """The run folder."""

    @property
    def export(self) -> Path:
        """The trained model in Hugging Face format, if `checkpoint.export` is on."""
        return self.folder / "export"

    def metrics(self) -> list[dict[str, float]]:
        """Returns the metrics of every step, the first step first."""
        return step_records(self.folder / "metrics.jsonl")


def plan(config: RunConfig) -> Planned:
    """Plans a run on the hardware that its configuration names, without starting anything.

    Raises:
        ConfigError: the rules between fields are broken, or the shape of a model is not known; or the argument is not a
            configuration.
    """
    _require_config(config, "plan")
    from ray_rl.config.gpus import needed_gpus
    from ray_rl.config.rules.check import check
    from ray_rl.planner.assess import assess
    from ray_rl.planner.gpus import ClusterShape
    from ray_rl.planner.report import report, verdict

    check(config, visible_gpus=needed_gpus(config))
    assessment = assess(config, ClusterShape.of(config))
    return Planned(assessment, "\n".join([verdict(assessment), *report(config, assessment)]))


def train(config: RunConfig, *, resume: Literal["auto"] | None = None) -> Trained:
    """Trains as `ray-rl train` does, and shows what it prints.

    The driver is a process of its own: Ray, torch and vLLM read their settings when they are imported, which a notebook
    may have done already, and a notebook runs an event loop of its own. An interrupt is passed on: the run saves and
    ends. Nothing else that ends this process ends the run: `ray-rl stop RUN` does.

    Args:
        config: the configuration of the run. Relative paths in it start at the current folder.
        resume: None requires a run folder that does not exist yet. "auto" continues the run if there is one.

    Raises:
        UserError: the configuration, its data or `resume` are wrong; nothing was started.
        Preempted: the run was interrupted and has saved; `resume="auto"` continues it.
        RayRLError: the run failed; the message says where its logs are.
    """
    _require_config(config, "train")
    if resume not in (None, "auto"):
        raise UserError(f"resume={resume!r} is not a way to resume; give 'auto' or None")
    with train_command(config, resume=resume) as command:
        code, message = _shown(command)
    if code == DONE:
        return Trained(Path(config.run.dir).expanduser() / config.run.name)
    error = {BAD_INPUT: UserError, CHECKPOINTED: Preempted}.get(code, RayRLError)
    raise error(message or f"the driver ended with code {code} and said nothing")


def _require_config(config: object, function: str) -> None:
    """Checks that an argument is a configuration.

    Raises:
        ConfigError: it has another type, for example that of a path.
    """
    if not isinstance(config, RunConfig):
        given = repr(str(config)) if isinstance(config, str | Path) else "FILE"
        raise ConfigError(
            f"{function} got an argument of the type {type(config).__name__}; pass what load_config returns: "
            f"{function}(load_config({given}))"
        )


def _shown(command: Sequence[str]) -> tuple[int, str]:
    """Runs a command and writes its output to `sys.stdout` and `sys.stderr` line by line.

    Returns:
        Its exit code, and its last message without "ray-rl: error: ".
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    assert process.stdout is not None and process.stderr is not None
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    readers = [
        threading.Thread(target=_pass_on, args=(process.stdout, sys.stdout, None), daemon=True),
        threading.Thread(target=_pass_on, args=(process.stderr, sys.stderr, tail), daemon=True),
    ]
    # An interrupt before both readers run waits until the `try`; it would otherwise leave the driver alone.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for reader in readers:
        reader.start()
    while True:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = process.wait()  # bound: as long as the run; an interrupt ends it
            break
        except KeyboardInterrupt:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
    for reader in readers:
        reader.join(timeout=READ_S)
    return code, _last_message(tail)


def _pass_on(source: IO[str], to: TextIO, tail: deque[str] | None) -> None:
    with source:
        for line in source:
            to.write(line)
            to.flush()
            if tail is not None:
                tail.append(line)


def _last_message(lines: Sequence[str]) -> str:
    """Returns the last message of a command, which may have several lines, or all lines if none begins like one."""
    starts = [i for i, line in enumerate(lines) if line.startswith(MESSAGE)]
    text = "".join(list(lines)[starts[-1] if starts else 0 :]).strip()
    return text.removeprefix(MESSAGE).removeprefix("error: ")
