"""The run folder: the paths in it, and its first two files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray_rl.config.run import RunSection
from ray_rl.errors import ConfigError, UserError
from ray_rl.metrics.aside import ASIDE, EXAMPLES, ROLLOUTS, set_records_aside
from ray_rl.metrics.environment import describe_environment
from ray_rl.metrics.folder_lock import GUARD, LOCK, locked
from ray_rl.metrics.modes import make_folder, set_readers
from ray_rl.metrics.newest_checkpoint import write_newest
from ray_rl.metrics.whole_pieces import write_whole

OF_A_START = {"config.yaml", "environment.json", "newest_checkpoint.json", "metrics.jsonl", "trace.json", LOCK, GUARD}
OF_A_START |= {ROLLOUTS, EXAMPLES, "tensorboard", "logs"}
"""Names in the folder of a run that has not trained a step."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`<run.dir>/<run.name>`, the folder with everything that a run writes."""

    root: Path

    @classmethod
    def of(cls, section: RunSection) -> RunFolder:
        """Returns the folder of a run, which need not exist."""
        return cls(Path(section.dir).expanduser() / section.name)

    def prepare(
        self, config: str, *, step: int | None, group_readable: bool, note: Callable[[str], None] = lambda text: None
    ) -> None:
        """Prepares the folder of a run that continues after `step`. Idempotent, so it can be killed and repeated.

        `config.yaml` becomes the new configuration, and the previous one stays as `config.until_step_<N>.yaml`.
        Records of later steps, which will be trained again, are moved to `aside/`. A new
        `environment.from_step_<N + 1>.json` is written.

        Args:
            config: The new configuration as YAML.
            step: The step of the checkpoint from which the run continues; None starts from step 0.
            group_readable: `run.group_readable`.
            note: Called with a message about records that were moved aside.

        Raises:
            ConfigError: The folder is not writable.
            RecordError: The disk is full; earlier files are intact.
        """
        done = step or 0
        check_kinds(self)
        try:
            set_readers(self.root, group=group_readable)
            make_folder(self.logs, exist_ok=True)
            self._remove_torn()
            # This comes first: no command could continue a run without its config.yaml.
            self._write_config(config.encode(), step)
            aside = self.set_aside_after(done, others=self._of_steps_from(done + 1))
        except OSError as error:
            raise ConfigError(
                f"{self.root}: the run cannot continue in this folder ({error}); check that you may write to it"
            ) from error
        if aside is not None:
            note(f"the records after step {done} were moved to {aside}")
        environment = json.dumps(describe_environment(), indent=2)
        write_whole(self._environment(done + 1), iter([environment.encode(), b"\n"]))
        write_newest(self.newest_checkpoint_json, step)

    def make(self, *, may_exist: bool) -> None:
        """Makes the empty folder, readable by its owner only.

        Args:
            may_exist: Accepts a folder that exists already, and leaves it as it is.

        Raises:
            ConfigError: It exists already, or it cannot be created.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=may_exist)
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

    def owned(self) -> AbstractContextManager[None]:
        """Reserves the folder for this process during the block.

        Raises:
            FolderHeld: another live process holds the folder.
            ConfigError: the folder cannot be locked.
        """
        return locked(self.root)

    def set_aside_after(self, step: int, *, others: Sequence[Path] = ()) -> Path | None:
        """Moves the records of later steps to a folder below `aside/`; see `set_records_aside`."""
        return set_records_aside(self.root, step=step, others=others)

    def remove_unless_of_value(self, *, are_logs_of_value: bool) -> bool:
        """Removes the folder of a run that failed to start, if it contains nothing of value.

        The folder stays if it has any file that a start does not write.

        Args:
            are_logs_of_value: Keeps the folder if a worker or the driver wrote a log.

        Returns:
            Whether the folder is gone.
        """
        logs = [file for file in self.logs.glob("*") if file.stat().st_size] if are_logs_of_value else []
        if logs or self.has_records or self.beyond_a_start:
            return False
        with suppress(OSError):
            for path in self.root.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            (self.root / LOCK).unlink()
            self.root.rmdir()
        return not self.root.exists()

    def _remove_torn(self) -> None:
        """Removes files that a kill left incomplete; their content still exists in its original place."""
        for folder in (self.root, self.rollouts, self.examples, *self.root.glob(f"{ASIDE}/*")):
            for torn in folder.glob("*.partial"):
                if torn.is_file():
                    torn.unlink()
        for aside in self.root.glob(f"{ASIDE}/*"):
            with suppress(OSError):
                aside.rmdir()  # removes only empty folders

    def _write_config(self, text: bytes, step: int | None) -> None:
        if self.config_yaml.is_file():
            before = self.config_yaml.read_bytes()
            if before == text:
                return
            if step is not None or self.has_records:
                self._keep_config(before, step or 0)
        write_whole(self.config_yaml, iter([text]), flush=True)

    def _keep_config(self, text: bytes, step: int) -> None:
        """Keeps the previous configuration; does not overwrite one that was kept before."""
        number = 1
        while True:
            path = self.root / f"config.until_step_{step}{'' if number == 1 else f'.{number}'}.yaml"
            if not path.exists():
                return write_whole(path, iter([text]), flush=True)
            if path.read_bytes() == text:
                return None
            number += 1

    def _environment(self, first_step: int) -> Path:
        return self.environment_json if first_step == 1 else self.root / f"environment.from_step_{first_step}.json"

    def _of_steps_from(self, first_step: int) -> list[Path]:
        """Returns the files of an earlier start from the same step, which would be overwritten."""
        files = [self._environment(first_step), self.trace(first_step=first_step)]
        # The new TensorBoard file tells it to forget older values from this step on, but not from step 1.
        return [*files, self.tensorboard] if first_step == 1 else files

    @property
    def last_config(self) -> Path | None:
        """The newest configuration of the run; None if there is none.

        It is `config.yaml`. Older versions could be killed after they moved it away and before they wrote the new one:
        then it is the newest `config.until_step_<N>.yaml`.
        """
        if self.config_yaml.is_file():
            return self.config_yaml
        before = [file for file in self.root.glob("config.until_step_*.yaml") if file.is_file()]
        return max(before, key=lambda file: file.stat().st_mtime_ns, default=None)

    @property
    def beyond_a_start(self) -> list[str]:
        """Names in the folder that a run which has not trained a step does not write."""
        names = {path.name for path in self.root.iterdir()}
        return sorted(name for name in names if name.removesuffix(".partial") not in OF_A_START)

    @property
    def has_records(self) -> bool:
        """Whether a step was trained, or samples of a failed step were kept."""
        has_metrics = self.metrics_jsonl.is_file() and self.metrics_jsonl.stat().st_size > 0
        return has_metrics or any(any(part.glob("step_*.jsonl")) for part in (self.rollouts, self.examples))

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
        """One JSON object per step."""
        return self.root / "metrics.jsonl"

    @property
    def newest_checkpoint_json(self) -> Path:
        """The step of the newest complete checkpoint; see `newest_checkpoint`."""
        return self.root / "newest_checkpoint.json"

    @property
    def rollouts(self) -> Path:
        """One file of samples per step, for a run that trains on rollouts."""
        return self.root / ROLLOUTS

    @property
    def examples(self) -> Path:
        """One file per step with the examples that it was trained on, for a run that learns from examples."""
        return self.root / EXAMPLES

    @property
    def reference_jsonl(self) -> Path:
        """The reference's log-probabilities of all examples; see `loops.reference`."""
        return self.root / "reference.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint, `step_<N>`."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The final policy in Hugging Face format."""
        return self.root / "export"

    @property
    def logs(self) -> Path:
        """One log file per role and rank."""
        return self.root / "logs"

    def trace(self, *, first_step: int) -> Path:
        """Returns the path of the trace of steps from `first_step` on, for chrome://tracing or ui.perfetto.dev."""
        return self.root / ("trace.json" if first_step == 1 else f"trace.from_step_{first_step}.json")


def config_file(run: Path) -> Path:
    """Returns the newest configuration file of a run folder.

    Raises:
        UserError: The folder is not a run folder.
    """
    file = RunFolder(run.expanduser()).last_config
    if file is None:
        raise UserError(f"{run}: not a run folder, it has no config.yaml; give the folder that `ray-rl train` made")
    return file


def check_kinds(folder: RunFolder) -> None:
    """Checks that every name in the run folder is a file or a folder as it should be.

    Raises:
        ConfigError: A name is of another kind, or a broken link; nothing is changed.
    """
    records = (folder.rollouts, folder.examples, folder.tensorboard, folder.logs, folder.root / ASIDE)
    folders = (*records, folder.checkpoints, folder.export)
    files = (folder.config_yaml, folder.environment_json, folder.metrics_jsonl, folder.newest_checkpoint_json)
    for path in (*folders, *files):
        # For checkpoints it is a sign of a mount that is not available yet: see `resuming`.
        if path.is_symlink() and not path.exists() and path != folder.checkpoints:
            raise ConfigError(
                f"{path}: is a link to {os.readlink(path)}, which does not exist; create its target, or remove the "
                "link, then start again"
            )
        if path.exists() and path.is_dir() != (path in folders):
            wanted, seen = ("folder", "file") if path in folders else ("file", "folder")
            raise ConfigError(f"{path}: is a {seen} where a run has a {wanted}; move it away, then start again")
