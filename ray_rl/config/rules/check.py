"""Checks the rules between fields before anything is started. Loads without torch.

Each rule yields one message per violation: the key and its value, the reason, and what to set instead.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ray_rl.catalog.model_kinds import architecture_of, kind_of
from ray_rl.catalog.models import PACKAGED_MODELS
from ray_rl.catalog.shapes import read_settings, reads_chat
from ray_rl.catalog.weight_files import weight_file_problems
from ray_rl.config.data import Files, Mixture, ReasoningGym, Source, is_pattern
from ray_rl.config.gpus import visible_gpu_count
from ray_rl.config.loading.explain import as_one_message, show
from ray_rl.config.loading.nearest import nearest
from ray_rl.config.rewards import ModelReward, ReasoningGymScore, Regex
from ray_rl.config.roles import models_of, roles_of
from ray_rl.config.rules.adapter import adapter_rules
from ray_rl.config.rules.algorithm import algorithm_rules, training_rules
from ray_rl.config.rules.continuing import continuing_rules
from ray_rl.config.rules.determinism import determinism_rules
from ray_rl.config.rules.episodes import episode_rules
from ray_rl.config.rules.hardware import hardware_rules
from ray_rl.config.rules.model_kinds import model_kind_rules
from ray_rl.config.rules.modes import mode_rules
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError
from ray_rl.program import program

TRANSFORMERS_LABELS = 2
"""Number of labels if config.json does not have it."""


def check(
    config: RunConfig,
    *,
    visible_gpus: int | None = None,
    is_elsewhere: bool = False,
    stand_ins: Collection[str] = (),
) -> None:
    """Checks every rule between fields, and that the named folders and files exist.

    Args:
        config: a configuration from `load_config`.
        visible_gpus: GPUs of this machine, for a run that starts its own cluster here; None counts them.
        is_elsewhere: whether the run uses other machines, whose absolute paths may not exist here.
        stand_ins: models in `rewards` that stand for reward models which do not exist yet: they need no head.

    Raises:
        ConfigError: the message has every violation with its remedy.
    """
    problems = [
        *mode_rules(config),
        *algorithm_rules(config),
        *training_rules(config),
        *continuing_rules(config, is_elsewhere=is_elsewhere),
        *adapter_rules(config),
        *_models(config, is_elsewhere=is_elsewhere, stand_ins=stand_ins),
        *model_kind_rules(config, stand_ins=stand_ins),
        *_lengths(config),
        *_data(config, is_elsewhere=is_elsewhere),
        *_rewards(config),
        *determinism_rules(config),
        *episode_rules(config),
        *hardware_rules(config, visible_gpu_count() if visible_gpus is None else visible_gpus),
    ]
    if problems:
        raise ConfigError(as_one_message(problems))


def check_run_folder_is_free(config: RunConfig, *, taken: Callable[[str], None] | None = None) -> None:
    """Checks that the folder of a run can be created, before the slow start of the run.

    Args:
        config: the configuration of the run.
        taken: called with a remark if the folder exists already; None refuses it.

    Raises:
        ConfigError: the folder exists already, or the place for it cannot be written to.
    """
    folder = Path(config.run.dir).expanduser() / config.run.name
    if os.path.lexists(folder):
        remark = (
            f"run.name={config.run.name}: {folder} exists already, and a run folder is never overwritten; "
            f"{_continued(folder)}set run.name to a new name"
        )
        if taken is None:
            raise ConfigError(remark)
        taken(remark)
        return
    parent = next(parent for parent in folder.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run.dir={config.run.dir}: {parent} is not a folder that you may write to; set run.dir to such a folder"
        )


def _continued(folder: Path) -> str:
    """Returns the command that continues a run, up to the ", or" before another remedy; "" for other folders."""
    own = folder / "config.yaml"
    if any(folder.glob("checkpoints/step_*")):
        return f"continue it with `{program()} resume {shlex.quote(str(folder))}`, or "
    if own.exists():
        return (
            "it has no checkpoint, so begin it again with "
            f"`{program()} train {shlex.quote(str(own))} --resume auto`, or "
        )
    return ""


def _models(config: RunConfig, *, is_elsewhere: bool, stand_ins: Collection[str]) -> Iterator[str]:
    for key, path in models_of(config):
        yield from _model(key, path, is_elsewhere=is_elsewhere)
    for role in roles_of(config):
        for key, path in role.models if isinstance(role.settings, ModelReward) else ():
            yield from _judge(key, path, config) if path not in stand_ins else ()


def _is_missing_here(path: str, *, is_elsewhere: bool) -> bool:
    """Returns whether an absolute path does not exist here but may exist where the run will be."""
    place = Path(path).expanduser()
    return is_elsewhere and place.is_absolute() and not place.exists()


def _model(key: str, path: str, *, is_elsewhere: bool) -> Iterator[str]:
    if path in PACKAGED_MODELS or _is_missing_here(path, is_elsewhere=is_elsewhere):
        return
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            yield (
                f"{key}={path}: the folder has no config.json, so it is not a model in Hugging Face format; "
                f"set {key} to the folder that has it"
            )
        for problem in weight_file_problems(folder):
            yield f"{key}={path}: {problem}: the weights are incomplete or damaged; copy or download them again"
    elif folder.exists():
        yield f"{key}={path}: is a file; set {key} to the folder of a model in Hugging Face format"
    elif _looks_like_a_folder(path):
        near = nearest(path.lower(), PACKAGED_MODELS)
        hint = f"did you mean the packaged model {near}? Else set" if near else "set"
        yield (
            f"{key}={path}: no such model folder; {hint} {key} to a folder that exists, to a hub name (owner/name), "
            f"or to a packaged model ({', '.join(PACKAGED_MODELS)})"
        )


def _judge(key: str, path: str, config: RunConfig) -> Iterator[str]:
    settings = read_settings(path)
    if settings is None:
        return
    is_of_another_kind = kind_of(architecture_of(settings)) not in (None, "reward model")  # see `model_kind_rules`
    labels = settings.get("id2label", settings.get("num_labels", TRANSFORMERS_LABELS))
    count = labels if isinstance(labels, int) else len(labels)
    if count != 1 and not is_of_another_kind:
        yield (
            f"{key}={path}: the model has {count} labels, and a reward needs one number; set {key} to a sequence "
            "classification model with num_labels 1"
        )
    if not reads_chat(settings) and config.data.system_prompt is not None:
        yield (
            f"data.system_prompt: {key}={path} was trained on plain text (data.chat=false), and reads no system "
            "message; remove data.system_prompt, or train the reward model with data.chat=true"
        )


def _looks_like_a_folder(path: str) -> bool:
    # A hub name is owner/name, and its owner is not a folder here.
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).parent.is_dir()


def _lengths(config: RunConfig) -> Iterator[str]:
    context = _context_tokens(config.model.path)
    if config.is_offline:
        # A model that scores reads one more token, after the end.
        most = None if context is None else context - config.offline.is_scorer
        if most is not None and config.data.max_tokens > most:
            yield (
                f"data.max_tokens={config.data.max_tokens}: does not fit into the context of {config.model.path}, "
                f"{context} tokens; set data.max_tokens to {most} or less"
            )
        return
    key = "rollout.max_tokens" if config.episodes is None else "environment.max_tokens"
    prompt, completion = config.data.max_prompt_tokens, config.most_tokens
    if context is None or prompt + completion <= context:
        return
    remedies = [f"{key} to {context - prompt} or less"] if prompt < context else []
    remedies += [f"data.max_prompt_tokens to {context - completion} or less"] if completion < context else []
    yield (
        f"data.max_prompt_tokens={prompt} + {key}={completion}: {prompt + completion} tokens do not fit "
        f"into the context of {config.model.path}, {context} tokens; set "
        + (" or ".join(remedies) or f"both so that their sum is {context} or less")
    )


def _context_tokens(path: str) -> int | None:
    """Returns the longest sequence of a model; None if that cannot be known without loading the model."""
    if path in PACKAGED_MODELS:
        return PACKAGED_MODELS[path].context_tokens
    config = read_settings(path)
    if config is None:
        return None
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def _data(config: RunConfig, *, is_elsewhere: bool) -> Iterator[str]:
    if isinstance(config.data, Mixture):
        for index, part in enumerate(config.data.parts):
            yield from _file(f"data.parts.{index}.source.path", part.source, is_elsewhere=is_elsewhere)
    else:
        yield from _file("data.path", config.data, is_elsewhere=is_elsewhere)


def _file(key: str, source: Source, *, is_elsewhere: bool) -> Iterator[str]:
    if not isinstance(source, Files):
        return
    if _is_missing_here(source.path, is_elsewhere=is_elsewhere) or is_pattern(source.path):
        return
    file = Path(source.path).expanduser()
    if not file.exists():
        yield f"{key}={source.path}: no such file ({file.absolute()}); set {key} to a file that exists"


def _rewards(config: RunConfig) -> Iterator[str]:
    if not config.rewards and not config.is_offline and config.episodes is None:
        yield "rewards=[]: nothing scores the completions; add a reward function, or a reward model with kind: model"
    names: dict[str, int] = {}
    for index, reward in enumerate(config.rewards):
        name = reward.label
        if name in names:
            yield (
                f"rewards.{index}.name={name}: rewards.{names[name]} has the same name, and records need different "
                f"ones; set rewards.{index}.name to another name"
            )
        names.setdefault(name, index)
        match reward:
            case ReasoningGymScore() if not isinstance(config.data, ReasoningGym):
                yield (
                    f"rewards.{index}.kind=reasoning_gym: only prompts of a reasoning_gym task have its verifier, and "
                    f"data.kind={config.data.kind}; set data.kind=reasoning_gym or use another reward"
                )
            case Regex():
                yield from _pattern(f"rewards.{index}.pattern", reward.pattern)


def _pattern(key: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern, re.DOTALL)
    except re.error as error:
        yield f"{key}={show(pattern)}: not a regular expression ({error}); correct it"
