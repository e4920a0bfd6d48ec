"""The folder that a run leaves behind: the paths in it, and its first two files."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_rl.config import RunConfig
from ray_rl.config.load import dump_config
from ray_rl.errors import ConfigError
from ray_rl.metrics.environment import describe_environment
from ray_rl.metrics.whole_pieces import write_whole


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`<run.dir>/<run.name>`. Everything that a run writes is in here."""

    root: Path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder of a run, there or not."""
        return cls(Path(config.run.dir).expanduser() / config.run.name)

    @classmethod
    def create(cls, config: RunConfig) -> RunFolder:
        """Makes the folder, readable by its owner alone, and writes `config.yaml` and `environment.json`.

        Raises:
            ConfigError: it exists already, or it cannot be created.
            RecordError: the disk is full.
        """
        folder = cls.of(config)
        folder._make()
        folder._describe(config, folder.environment_json)
        return folder

    @classmethod
    def reopen(cls, config: RunConfig, *, step: int) -> RunFolder:
        """The folder of a run that goes on after `step`; what it says of later steps, which are trained again, goes.

        `config.yaml` becomes the configuration now in force, the one before stays as `config.until_step_<N>.yaml`, and
        there is a new `environment.from_step_<N + 1>.json`.

        Raises:
            ConfigError: it cannot be written to.
        """
        folder = cls.of(config)
        try:
            if folder.config_yaml.read_text(encoding="utf-8") != dump_config(config):
                os.replace(folder.config_yaml, folder.root / f"config.until_step_{step}.yaml")
            folder._describe(config, folder.root / f"environment.from_step_{step + 1}.json")
            folder.forget_after(step)
        except OSError as error:
            raise ConfigError(
                f"{folder.root}: the run cannot go on in this folder ({error}); see that you may write to it"
            ) from error
        return folder

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps the folder for this process while the block lasts.

        Raises:
            ConfigError: another process has it.
        """
        with (self.root / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"{self.root}: another process trains in this run folder; wait for its end or stop it first"
                ) from error
            yield

    def _describe(self, config: RunConfig, environment_json: Path) -> None:
        write_whole(self.config_yaml, iter([dump_config(config).encode()]))
        write_whole(environment_json, iter([json.dumps(describe_environment(), indent=2).encode(), b"\n"]))

    def forget_after(self, step: int) -> None:
        """Drops the records and samples of later steps, and a line that was not written to its end."""
        if self.metrics_jsonl.exists():
            lines = self.metrics_jsonl.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
            write_whole(self.metrics_jsonl, iter(kept))
        for file in self.rollouts.glob("step_*.jsonl"):
            if int(file.stem.split("_")[1].split(".")[0]) > step:
                file.unlink()

    def _make(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True)
        except FileExistsError as error:
            raise ConfigError(
                f"run.name={self.root.name!r}: {self.root} exists already, and a run folder is never overwritten; "
                "choose another run.name or run.dir, or move the old folder away"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"run.dir={str(self.root.parent)!r}: cannot create {self.root} ({error.strerror}); "
                "set run.dir to a folder that you may write to"
            ) from error
        for part in (self.rollouts, self.logs):
            part.mkdir(mode=0o700)

    @property
    def config_yaml(self) -> Path:
        """The configuration after overrides and defaults."""
        return self.root / "config.yaml"

    @property
    def environment_json(self) -> Path:
        """Versions, hardware and command line."""
        return self.root / "environment.json"

    @property
    def metrics_jsonl(self) -> Path:
        """One object a step."""
        return self.root / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """One file of samples a step."""
        return self.root / "rollouts"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, `step_<N>`."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The final policy in Hugging Face format."""
        return self.root / "export"

    @property
    def logs(self) -> Path:
        """One file for every role and rank."""
        return self.root / "logs"

    def trace(self, *, first_step: int) -> Path:
        """The phases of all steps from one on, for chrome://tracing or ui.perfetto.dev."""
        return self.root / ("trace.json" if first_step == 1 else f"trace.from_step_{first_step}.json")
