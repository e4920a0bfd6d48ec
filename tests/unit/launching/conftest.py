from collections.abc import Callable
from pathlib import Path

import pytest

from ray_rl.cli.launch import job_of
from ray_rl.config.loading.load import load_config
from ray_rl.launching.job import Job

CONFIG = """\
run: {name: test, dir: /runs, steps: 10}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: grpo, reduction: token_mean, kl: {coefficient: 0}}
cluster: {accelerator: cpu}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Makes the job of the smallest configuration, in a folder of its own, under overrides."""
    monkeypatch.chdir(tmp_path)

    def make(*overrides: str, path: str = "run.yaml", commit: str | None = None) -> Job:
        Path(path).write_text(CONFIG)
        return job_of(load_config(path, overrides), path, overrides, commit=commit)

    return make
