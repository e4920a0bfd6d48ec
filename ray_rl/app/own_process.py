"""The command that trains in a process of its own, for programs that must not import what a run imports."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ray_rl.config.loading.load import dump_config
from ray_rl.config.run import RunConfig


@contextmanager
def train_command(config: RunConfig, *, resume: Literal["auto"] | None) -> Iterator[list[str]]:
    """Yields the command that trains with a configuration, which is in a temporary file during the block.

    Give the process a session of its own, and pass each signal on to it: Ctrl-C in a terminal would otherwise reach it
    twice, which ends a run without saving.

    Args:
        config: the configuration of the run.
        resume: `--resume` of the command.
    """
    with tempfile.TemporaryDirectory(prefix="ray_rl-") as private:  # mode 0700: the file has the secrets
        file = Path(private) / f"{config.run.name}.yaml"
        file.write_text(dump_config(config, with_secrets=True), encoding="utf-8")
        command = [sys.executable, "-m", "ray_rl.cli.main", "train", str(file)]
        yield [*command, "--resume", resume] if resume else command
