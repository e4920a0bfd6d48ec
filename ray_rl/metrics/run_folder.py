"""The folder that a run leaves behind: the paths in it, and its first two files."""

from __future__ import annotations

import json
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
    def create(cls, config: RunConfig) -> RunFolder:
        """Makes the folder, readable by its owner alone, and writes `config.yaml` and `environment.json`.

        Raises:
            ConfigError: it exists already, or it cannot be created.
            RecordError: the disk is full.
        """
        folder = cls(Path(config.run.dir).expanduser() / config.run.name)
        folder._make()
        write_whole(folder.config_yaml, iter([dump_config(config).encode()]))
        write_whole(folder.environment_json, iter([json.dumps(describe_environment(), indent=2).encode(), b"\n"]))
        return folder

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

    @property
    def trace(self) -> Path:
        """The phases of all steps, for chrome://tracing or ui.perfetto.dev."""
        return self.root / "trace.json"
