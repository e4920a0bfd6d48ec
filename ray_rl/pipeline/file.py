"""Loads the file of a pipeline, which lists its stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from ray_rl.config.base import Config
from ray_rl.config.loading.explain import explain, override_place
from ray_rl.config.loading.load import set_override
from ray_rl.config.loading.nearest import nearest
from ray_rl.config.loading.yaml_tree import read_yaml
from ray_rl.errors import ConfigError
from ray_rl.metrics.folder_lock import LOCK

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
_TAKEN = {
    "launch": "launch.key=value sets the launch settings of all stages",
    LOCK: f"the folder of the pipeline has a file {LOCK}, where the run folder of the stage would be",
}
"""Names that no stage can have, and why."""


class StageConfig(Config):
    """A stage: one run with a configuration of its own."""

    name: str = Field(pattern=_NAME)
    """Name of the stage and of its run folder: letters, digits, hyphens and underscores."""
    config: str
    """YAML file of the run; a relative path starts at the folder of the pipeline's file. The pipeline sets `run.dir`
    and `run.name`."""
    overrides: list[str] = Field(default_factory=list)
    """Values that replace those of the file, as on the command line: [run.steps=3]."""
    show: list[str] | None = None
    """Metrics whose course is part of the summary. None: `reward/mean`, `eval/loss` and `eval/accuracy`, as far as the
    stage has them."""


class PipelineConfig(Config):
    """The content of the file of a pipeline."""

    name: str = Field(pattern=_NAME)
    """Name of the pipeline's folder in `dir`, which contains the run folder of every stage: letters, digits, hyphens
    and underscores."""
    dir: str = "runs"
    """Folder that contains the folders of pipelines."""
    stages: list[StageConfig] = Field(min_length=1)
    """The stages, in the order in which they are trained."""

    @property
    def folder(self) -> Path:
        """The folder of the pipeline."""
        return Path(self.dir).expanduser() / self.name


def is_pipeline(path: Path) -> bool:
    """Returns whether a file is that of a pipeline, and not of one run; False if it cannot be read."""
    try:
        return read_yaml(path).child("stages") is not None
    except ConfigError:
        return False


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Returns the pipeline in a file, with overrides.

    An override is `name=value`, `dir=value`, or `STAGE.key=value` for a value in the configuration of a stage.

    Raises:
        ConfigError: the message has every problem, with `file:line` or the override, the value and the remedy.
    """
    tree = read_yaml(path)
    of_stages = [text for text in overrides if "." in text.partition("=")[0]]
    for text in overrides:
        if text not in of_stages:
            set_override(tree, text, PipelineConfig)
    try:
        pipeline = PipelineConfig.model_validate(tree.plain())
    except ValidationError as error:
        raise ConfigError(explain(error, tree, PipelineConfig)) from None
    names = [stage.name for stage in pipeline.stages]
    listed = tree.child("stages")
    for index, name in enumerate(names):
        entry = listed and listed.child(index)
        if name in names[:index] and entry:
            raise ConfigError(
                f"{entry.where}: stages.{index}.name={name}: an earlier stage has the same name, and each needs a run "
                "folder; rename one"
            )
        if name in _TAKEN and entry:
            raise ConfigError(f"{entry.where}: stages.{index}.name={name}: {_TAKEN[name]}; rename the stage")
    added: dict[str, list[str]] = {name: [] for name in names}
    for text in of_stages:
        name, _, of_run = text.partition(".")
        if name not in added:
            raise ConfigError(_no_such_stage(text, names))
        added[name].append(of_run)
    stages = [
        stage.model_copy(
            update={
                "config": str(path.parent / Path(stage.config).expanduser()),
                "overrides": [*stage.overrides, *added[stage.name]],
            }
        )
        for stage in pipeline.stages
    ]
    return pipeline.model_copy(update={"stages": stages})


def _no_such_stage(text: str, names: Sequence[str]) -> str:
    key, _, written = text.partition("=")
    name, _, rest = key.partition(".")
    near = nearest(name, names)
    hint = f"did you mean {near}.{rest}? " if near else ""
    return (
        f"{override_place(key, written)}: {name} is not a stage; {hint}"
        f"Write STAGE.key=value; the stages are {', '.join(names)}"
    )
