import json
from pathlib import Path

import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.config.rules.check import check
from ray_rl.errors import ConfigError

SMALLEST = """\
run: {name: test, steps: 10}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: grpo, reduction: token_mean, kl: {coefficient: 0}}
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


@pytest.fixture
def refused(load):
    """The message with which `check` refuses the smallest configuration under overrides."""

    def message(*overrides, visible_gpus=0):
        config = load(*overrides)
        with pytest.raises(ConfigError) as caught:
            check(config, visible_gpus=visible_gpus)
        return str(caught.value)

    return message


@pytest.fixture
def passes(load):
    """Checks the smallest configuration under overrides, and returns it."""

    def checked(*overrides, visible_gpus=0):
        config = load(*overrides)
        check(config, visible_gpus=visible_gpus)
        return config

    return checked


@pytest.fixture
def write_model(tmp_path, monkeypatch):
    """Writes the config.json of a model folder below the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_settings(folder, settings):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(settings))

    return write_settings
