"""The stages of a pipeline as runs: the configuration of each, and the models that it takes from earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_rl.checkpoint.export_marks import model_folders
from ray_rl.config.adapter_folder import TEMPLATE_FILE
from ray_rl.config.loading.explain import show
from ray_rl.config.loading.load import load_config
from ray_rl.config.loading.yaml_tree import Located
from ray_rl.config.rewards import ModelReward
from ray_rl.config.rules.model_kinds import made_by, uses_of
from ray_rl.config.run import RunConfig
from ray_rl.data.chat import uses_chat
from ray_rl.errors import ConfigError
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.pipeline.adapters import continue_adapters, require_same_adapters
from ray_rl.pipeline.file import PipelineConfig, StageConfig
from ray_rl.pipeline.references import resolve


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage with its configuration, in which references to earlier stages are the folders of their models."""

    settings: StageConfig
    config: RunConfig
    sources: tuple[str, ...]
    """Names of the stages whose models it loads."""

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.settings.name

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder.of(self.config.run)

    @property
    def models(self) -> tuple[str, ...]:
        """The folders of the models that the stage exports."""
        return tuple(map(str, model_folders(self.folder.export, self.config.members)))


def load_stages(pipeline: PipelineConfig, *, launch: str | None = None) -> list[Stage]:
    """Loads the configuration of every stage.

    Args:
        pipeline: the file of the pipeline.
        launch: a file with the content of the `launch` section of every stage; None uses their own.

    Raises:
        ConfigError: a configuration is wrong, or refers to a stage that is not an earlier one with an export.
    """
    stages: dict[str, Stage] = {}
    for settings in pipeline.stages:
        stages[settings.name] = _loaded(settings, pipeline, stages, launch=launch)
    return list(stages.values())


def with_stand_ins(config: RunConfig, makers: Mapping[str, RunConfig]) -> tuple[RunConfig, frozenset[str]]:
    """Replaces models that do not exist yet by the models from which they will be trained, to check a later stage.

    A model and what is trained from it have the same tokenizer and shape, except for the head of a reward model.

    Args:
        config: the configuration of a stage.
        makers: the configuration of the stage that will make a model, by the model's folder.

    Returns:
        The configuration, and the models in it that stand for reward models.
    """
    changed: dict[str, Any] = {}
    adapter = config.model.adapter
    if config.model.path in makers:
        start = _start_of(config.model.path, makers)
        template = _template_of(config, makers) or _template_of(start, makers)
        changed["model"] = config.model.model_copy(update={"path": start.model.path, "chat_template": template})
    if adapter is not None and adapter.path in makers:
        new = {"adapter": adapter.model_copy(update={"path": None}), "chat_template": _template_of(config, makers)}
        changed["model"] = changed.get("model", config.model).model_copy(update=new)
    for name, role in (("critic", config.critic), ("reference", config.reference)):
        if role is not None and role.path in makers:
            changed[name] = role.model_copy(update={"path": None})
    stand_ins = set()
    for index, reward in enumerate(config.rewards):
        if isinstance(reward, ModelReward) and makers.keys() & set(reward.paths):
            paths = [_start_of(path, makers).model.path if path in makers else path for path in reward.paths]
            stand_ins |= set(paths) - set(reward.paths)
            entries = changed.setdefault("rewards", list(config.rewards))
            entries[index] = reward.model_copy(update={"paths": paths})
    return config.model_copy(update=changed), frozenset(stand_ins)


def makers_of(stages: Sequence[Stage]) -> dict[str, RunConfig]:
    """Returns the configuration of the stage that makes each model, by the model's folder."""
    return {folder: stage.config for stage in stages for folder in stage.models}


def _start_of(path: str, makers: Mapping[str, RunConfig]) -> RunConfig:
    """Returns the configuration of the first stage in the chain that makes a model: it starts from one that exists."""
    maker = makers[path]
    return _start_of(maker.model.path, makers) if maker.model.path in makers else maker


def _template_of(config: RunConfig, makers: Mapping[str, RunConfig]) -> str | None:
    """Returns the chat template of a run, or that from which an earlier stage will make it."""
    template, adapter = config.model.chat_template, config.model.adapter
    if (
        adapter is None
        or adapter.path is None
        or adapter.path not in makers
        or template != f"{adapter.path}/{TEMPLATE_FILE}"
    ):
        return template
    return _template_of(makers[adapter.path], makers)


def _loaded(
    settings: StageConfig, pipeline: PipelineConfig, earlier: Mapping[str, Stage], *, launch: str | None
) -> Stage:
    used: list[str] = []

    def folders_of(name: str) -> Sequence[str]:
        if name not in earlier:
            known = f"the earlier stages are {', '.join(earlier)}" if earlier else "this is the first stage"
            raise ConfigError(f"there is no earlier stage {name}; {known}")
        if not earlier[name].config.checkpoint.export:
            raise ConfigError(f"stage {name} exports no model (checkpoint.export=false); set that to true")
        used.append(name)
        return earlier[name].models

    makers = makers_of(list(earlier.values()))

    def edit(tree: Located) -> None:
        resolve(tree, folders_of)
        continue_adapters(tree, makers)

    # Values of text fields are taken as typed, without the surrounding quotes.
    place = [f'run.dir="{pipeline.folder}"', f'run.name="{settings.name}"']
    try:
        config = load_config(
            settings.config,
            [*settings.overrides, *place],
            launch=launch,
            edit=edit,
        )
    except ConfigError as error:
        raise ConfigError(f"stage {settings.name}: {error}") from None
    _require_kinds(settings, config, makers)
    require_same_adapters(config, makers, stage=settings.name)
    _require_chat(settings, config, [earlier[name] for name in used])
    return Stage(settings, config, tuple(dict.fromkeys(used)))


def _require_kinds(settings: StageConfig, config: RunConfig, makers: Mapping[str, RunConfig]) -> None:
    """Refuses the model of an earlier stage where it is of the wrong kind: a language model as a reward, for example.

    Raises:
        ConfigError: there is such a model.
    """
    for use in uses_of(config):
        maker = makers.get(use.path)
        if maker is not None and made_by(maker) not in use.kinds:
            key = "model.path" if use.key == "model.adapter.path" else use.key
            raise ConfigError(
                f"stage {settings.name}: {settings.config}: {key}={{stage: {maker.run.name}}}: stage {maker.run.name} "
                f"makes a {made_by(maker)} (algorithm.kind={maker.algorithm.kind}), and {use.wanted}; set {key} to "
                f"{use.remedy}"
            )


def _require_chat(settings: StageConfig, config: RunConfig, sources: Sequence[Stage]) -> None:
    """Refuses a system prompt for reward models of earlier stages that learn from plain text.

    Raises:
        ConfigError: there is such a model.
    """
    judged = {path for reward in config.rewards if isinstance(reward, ModelReward) for path in reward.paths}
    for source in sources:
        if config.data.system_prompt is not None and judged & set(source.models) and not uses_chat(source.config.data):
            raise ConfigError(
                f"stage {settings.name}: {settings.config}: data.system_prompt={show(config.data.system_prompt)}: the "
                f"reward model of stage {source.name} is trained on plain text (data.chat=false), and reads no system "
                f"message; remove data.system_prompt, or set {source.name}.data.chat=true"
            )
