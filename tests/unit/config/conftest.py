from pathlib import Path

import pytest

from ray_rl.config.load import load_config

SMALLEST = """\
run: {name: test, steps: 10}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards: [{kind: number}]
cluster: {accelerator: cpu}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file below the working directory and returns its relative path, as the user would give it."""
    monkeypatch.chdir(tmp_path)

    def write_file(text, name="run.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return Path(name)

    return write_file


@pytest.fixture
def load(write):
    """Loads the smallest configuration under overrides."""

    def load_smallest(*overrides):
        return load_config(write(SMALLEST), overrides)

    return load_smallest
