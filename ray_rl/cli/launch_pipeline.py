"""Makes the job that `ray-rl render` and `ray-rl submit` launch for the file of a pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.errors import ConfigError, UserError

if TYPE_CHECKING:
    from ray_rl.config.run import RunConfig
    from ray_rl.launching.job import PipelineJob
    from ray_rl.pipeline.file import PipelineConfig

OF_ALL_NODES = ("accelerator", "gpus_per_node")
"""Keys of `cluster` that all stages must have in common: a job has equal nodes."""


def pipeline_job(arguments: argparse.Namespace, *, commit: str | None) -> PipelineJob:
    """Returns the job of a pipeline: one for all stages, with the nodes of the largest one.

    Overrides of `launch` and the launch file apply to every stage.

    Raises:
        ConfigError: a stage is wrong, the stages do not fit one job, or the back end cannot run a pipeline.
    """
    from ray_rl.config.rules.launch import check_launch
    from ray_rl.launching.job import PipelineJob
    from ray_rl.pipeline.file import load_pipeline
    from ray_rl.planner.plan import plan

    path, backend = arguments.config, arguments.backend
    if backend == "kuberay":
        raise ConfigError(
            f"{path}: a RayJob of KubeRay has the configuration of one run, and this is the file of a pipeline; submit "
            "the configuration of each stage after the one before has ended, with its export as model.path, or use "
            "slurm or ray-job"
        )
    launching = [text for text in arguments.overrides if text.strip().startswith(("launch.", "launch="))]
    others = [text for text in arguments.overrides if text not in launching]
    file = load_pipeline(Path(path), others)
    stages = _checked_stages(file, launching, launch=arguments.launch, is_elsewhere=backend != "local")
    _require_equal(stages)
    largest = max(stages.values(), key=lambda config: (config.cluster.nodes, plan(config).gpus))
    grace_s = max(config.run.grace_s for config in stages.values())
    section = largest.run.model_copy(update={"dir": file.dir, "grace_s": grace_s})
    config = largest.model_copy(update={"run": section})
    check_launch(config, backend, arguments.overrides, folder_key="dir")
    return PipelineJob(
        config=config,
        config_path=path,
        overrides=tuple(text for text in others if ".cluster.address=" not in text),
        plan=plan(config),
        commit=commit,
        pipeline=file.name,
        stages=stages,
    )


def _checked_stages(
    file: PipelineConfig, launching: Sequence[str], *, launch: str | None, is_elsewhere: bool
) -> Mapping[str, RunConfig]:
    """Returns the configurations by stage, in which the models of earlier stages are those that they start from."""
    from ray_rl.config.gpus import needed_gpus
    from ray_rl.config.rules.check import check
    from ray_rl.pipeline.stages import load_stages, makers_of, with_stand_ins

    settings = [each.model_copy(update={"overrides": [*each.overrides, *launching]}) for each in file.stages]
    stages = load_stages(file.model_copy(update={"stages": settings}), launch=launch)
    makers, checked = makers_of(stages), {}
    for stage in stages:
        config, stand_ins = with_stand_ins(stage.config, makers)
        try:
            check(config, visible_gpus=needed_gpus(config), is_elsewhere=is_elsewhere, stand_ins=stand_ins)
        except UserError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from None
        checked[stage.name] = config
    return checked


def _require_equal(stages: Mapping[str, RunConfig]) -> None:
    """Refuses stages that need several jobs: with other launch settings, other nodes, or a check of all nodes."""
    (first, one), *others = stages.items()
    if one.launch.preflight:
        raise ConfigError(
            "launch.preflight=true: the job of a pipeline checks no nodes; set launch.preflight to false, and run "
            "`ray-rl doctor --cluster` with the configuration of its first stage"
        )
    for name, config in others:
        if config.launch != one.launch:
            raise ConfigError(
                f"stage {name}: its section launch differs from that of stage {first}, and a pipeline is one job; "
                "remove the sections, and give the settings of all stages with --launch FILE"
            )
        for key in OF_ALL_NODES:
            values = [vars(each.cluster)[key] for each in (one, config)]
            if values[0] != values[1]:
                raise ConfigError(
                    f"stage {name}: cluster.{key}={values[1]}, and stage {first} has {values[0]}; a pipeline is one "
                    "job with equal nodes, so set the same value in all stages"
                )
