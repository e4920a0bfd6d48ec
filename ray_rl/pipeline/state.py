"""The state of every stage of a pipeline, from its run folder and the record that it is done."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ray_rl.config.loading.load import dump_config
from ray_rl.config.loading.yaml_tree import read_yaml
from ray_rl.config.rules.resume import changed, differences
from ray_rl.errors import ConfigError
from ray_rl.metrics.whole_pieces import write_whole
from ray_rl.pipeline.stages import Stage

State = Literal["done", "interrupted", "new"]


def mark_done(stage: Stage) -> None:
    """Writes the record that a stage is done, which contains its configuration.

    Raises:
        RecordError: the disk is full.
    """
    write_whole(_record(stage), iter([dump_config(stage.config).encode()]), flush=True)


def states_of(stages: Sequence[Stage]) -> dict[str, State]:
    """Returns the state of every stage by its name.

    A stage is done if its record exists, and its run folder and its models too.

    Raises:
        ConfigError: a stage is done, and its configuration has changed since; or a stage was started with the models of
            another one that is not done now. The message says what to do.
    """
    states: dict[str, State] = {}
    for stage in stages:
        states[stage.name] = _state(stage, stages)
        stale = [name for name in stage.sources if states[name] != "done"]
        if stale and states[stage.name] != "new":
            raise ConfigError(
                f"stage {stage.name}: it was started with the model of stage {stale[0]}, which is not done now; to "
                f"train {stage.name} with the new model, {_move_away(stage, stages)}"
            )
    return states


def _state(stage: Stage, stages: Sequence[Stage]) -> State:
    if not stage.folder.root.is_dir():
        return "new"
    record = _record(stage)
    if not record.is_file() or not all(
        Path(model).is_dir() for model in stage.models if stage.config.checkpoint.export
    ):
        return "interrupted"
    differing = differences(read_yaml(record).plain(), stage.config)
    # The machines may be other ones now: they do not change what was trained.
    lines = [f"\n  {changed(key, *values)}" for key, values in differing.items() if not key.startswith("cluster.")]
    if lines:
        raise ConfigError(
            f"stage {stage.name}: it is done, and its configuration has changed since:{''.join(lines)}\n"
            f"Change it back; or, to train the stage again, {_move_away(stage, stages)}; or set another `name` to "
            "start a new pipeline"
        )
    return "done"


def _move_away(stage: Stage, stages: Sequence[Stage]) -> str:
    """Returns the instruction to move away a stage with every later stage that was started with its models."""
    moved = {stage.name: stage.folder.root}
    for later in stages:
        if moved.keys() & set(later.sources) and later.folder.root.is_dir():
            moved[later.name] = later.folder.root
    folders = shlex.join(map(str, moved.values()))
    return f"move {folders} to another place (or delete {'it' if len(moved) == 1 else 'them'})"


def _record(stage: Stage) -> Path:
    root = stage.folder.root
    return root.with_name(f"{root.name}.done.yaml")
