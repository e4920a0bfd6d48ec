"""Rules between fields, checked before anything is started. Loads without torch.

Each rule yields one message per violation: the key and value seen, the reason, and what to set instead.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from ray_rl.config.data import CustomSource, Jsonl, Parquet, ReasoningGym
from ray_rl.config.explain import as_one_message, show
from ray_rl.config.gpus import asked_gpus, has_reference, visible_gpu_count
from ray_rl.config.known import PACKAGED_MODELS
from ray_rl.config.rewards import CustomReward, ReasoningGymScore, Regex
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError


def check(config: RunConfig, *, visible_gpus: int | None = None) -> None:
    """Checks every rule between fields, and that the folders and files named exist.

    Args:
        config: as `load_config` returns it.
        visible_gpus: GPUs of this machine, for a run that starts its own cluster here; None counts them.

    Raises:
        ConfigError: naming every violation with its remedy.
    """
    problems = [
        *_batch(config),
        *_schedule(config),
        *_deepspeed(config),
        *_models(config),
        *_lengths(config),
        *_data(config),
        *_rewards(config),
        *_colocation(config),
        *_hardware(config, visible_gpu_count() if visible_gpus is None else visible_gpus),
    ]
    if problems:
        raise ConfigError(as_one_message(problems))


def check_run_folder_is_free(config: RunConfig) -> None:
    """Checks, before the slow start of a run, that its folder can be created.

    Raises:
        ConfigError: the folder exists already, or the place for it cannot be written to.
    """
    folder = Path(config.run.dir).expanduser() / config.run.name
    if os.path.lexists(folder):
        raise ConfigError(
            f"run.name={config.run.name}: {folder} exists already, and a run folder is never overwritten; "
            f"set run.name to a new name, or remove {folder}"
        )
    parent = next(parent for parent in folder.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run.dir={config.run.dir}: {parent} is not a folder that you may write to; set run.dir to one that is"
        )


def _batch(config: RunConfig) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.group_size < 2:
        yield (
            f"algorithm.group_size={algorithm.group_size}: a completion without peers has no advantage; "
            "set algorithm.group_size to 2 or more"
        )
    prompts, minibatches = algorithm.prompts_per_step, algorithm.minibatches
    if prompts % minibatches:
        divisors = ", ".join(str(n) for n in range(1, prompts + 1) if prompts % n == 0)
        yield (
            f"algorithm.minibatches={minibatches}: does not divide algorithm.prompts_per_step={prompts}; "
            f"set algorithm.minibatches to one of {divisors}"
        )
    rollouts = prompts * algorithm.group_size // minibatches
    if config.train.workers > rollouts:
        yield (
            f"train.workers={config.train.workers}: a minibatch holds {rollouts} rollouts (prompts_per_step {prompts} "
            f"* group_size {algorithm.group_size} / minibatches {minibatches}), so some workers would have none; "
            f"set train.workers to {max(rollouts, 1)} or less, or raise algorithm.prompts_per_step"
        )


def _schedule(config: RunConfig) -> Iterator[str]:
    steps = config.run.steps * config.algorithm.optimizer_steps
    warmup = config.train.schedule.warmup_steps
    if warmup >= steps:
        yield (
            f"train.schedule.warmup_steps={warmup}: the run has {steps} optimizer steps (run.steps "
            f"{config.run.steps} * {config.algorithm.optimizer_steps} a step), so the learning rate would never reach "
            f"its peak; set train.schedule.warmup_steps to {steps - 1} or less, or raise run.steps"
        )


def _deepspeed(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.offload.parameters and train.zero_stage != 3:
        yield (
            f"train.offload.parameters=true: only ZeRO stage 3 can move parameters to the CPU, and "
            f"train.zero_stage={train.zero_stage}; set train.zero_stage=3 or train.offload.parameters=false"
        )
    if train.offload.optimizer and train.zero_stage == 0:
        yield (
            "train.offload.optimizer=true: ZeRO stage 0 cannot move the optimizer to the CPU; "
            "set train.zero_stage to 1, 2 or 3, or train.offload.optimizer=false"
        )
    # auto may be bfloat16: a configuration is valid on every machine or on none.
    if train.zero_stage == 0 and config.model.dtype != "float32" and train.gradient_dtype == "float32":
        yield (
            "train.gradient_dtype=float32: DeepSpeed refuses to sum gradients in float32 at train.zero_stage=0 under "
            f"model.dtype={config.model.dtype}; set train.zero_stage=1, or train.gradient_dtype=bfloat16, or "
            "model.dtype=float32"
        )


def _models(config: RunConfig) -> Iterator[str]:
    yield from _model("model.path", config.model.path)
    if config.reference.path is not None and has_reference(config):
        yield from _model("reference.path", config.reference.path)


def _model(key: str, path: str) -> Iterator[str]:
    if path in PACKAGED_MODELS:
        return
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            yield (
                f"{key}={path}: the folder has no config.json, so it is not a model in Hugging Face format; "
                f"set {key} to the folder that has it"
            )
    elif folder.exists():
        yield f"{key}={path}: is a file; set {key} to the folder of a model in Hugging Face format"
    elif _looks_like_a_folder(path):
        near = get_close_matches(path.lower(), PACKAGED_MODELS, n=1)
        hint = f"did you mean the packaged model {near[0]}? Else set" if near else "set"
        yield (
            f"{key}={path}: no such model folder; {hint} {key} to a folder that exists, to a hub name (owner/name), "
            f"or to a packaged model ({', '.join(PACKAGED_MODELS)})"
        )


def _looks_like_a_folder(path: str) -> bool:
    """A hub name is owner/name, and its owner is not a folder here."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).parent.is_dir()


def _lengths(config: RunConfig) -> Iterator[str]:
    prompt, completion = config.data.max_prompt_tokens, config.rollout.max_tokens
    context = _context_tokens(config.model.path)
    if context is None or prompt + completion <= context:
        return
    remedies = [f"rollout.max_tokens to {context - prompt} or less"] if prompt < context else []
    remedies += [f"data.max_prompt_tokens to {context - completion} or less"] if completion < context else []
    yield (
        f"data.max_prompt_tokens={prompt} + rollout.max_tokens={completion}: {prompt + completion} tokens do not fit "
        f"into the context of {config.model.path}, {context} tokens; set "
        + (" or ".join(remedies) or f"both so that their sum is {context} or less")
    )


def _context_tokens(path: str) -> int | None:
    """Longest sequence that a model takes; None if that cannot be known without loading it."""
    if path in PACKAGED_MODELS:
        return PACKAGED_MODELS[path].context_tokens
    try:
        config = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def _data(config: RunConfig) -> Iterator[str]:
    data = config.data
    match data:
        case Jsonl() | Parquet():
            file = Path(data.path).expanduser()
            if not file.exists():
                yield f"data.path={data.path}: no such file ({file.absolute()}); set data.path to a file that exists"
            elif not file.is_file():
                yield f"data.path={data.path}: is not a file; set data.path to a .{data.kind} file"
        case CustomSource():
            yield from _import_path("data.function", data.function)


def _rewards(config: RunConfig) -> Iterator[str]:
    names: dict[str, int] = {}
    for index, reward in enumerate(config.rewards):
        name = reward.name or reward.kind
        if name in names:
            yield (
                f"rewards.{index}.name={name}: rewards.{names[name]} has it too, and parts are recorded by name; "
                f"set rewards.{index}.name to another"
            )
        names.setdefault(name, index)
        match reward:
            case ReasoningGymScore() if not isinstance(config.data, ReasoningGym):
                yield (
                    f"rewards.{index}.kind=reasoning_gym: it scores by the verifier of a reasoning_gym task, and "
                    f"data.kind={config.data.kind}; set data.kind=reasoning_gym or take another reward"
                )
            case CustomReward():
                yield from _import_path(f"rewards.{index}.function", reward.function)
            case Regex():
                yield from _pattern(f"rewards.{index}.pattern", reward.pattern)


def _pattern(key: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern, re.DOTALL)
    except re.error as error:
        yield f"{key}={show(pattern)}: not a regular expression ({error}); correct it"


def _import_path(key: str, path: str) -> Iterator[str]:
    module, _, function = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        yield f"{key}={path}: not an import path; write package.module:function, for example my_package.rewards:brevity"


def _colocation(config: RunConfig) -> Iterator[str]:
    seen: dict[str, int] = {}
    for index, group in enumerate(config.cluster.colocate):
        if len(group) < 2:
            yield (
                f"cluster.colocate.{index}={show(group)}: roles share GPUs only with others; "
                "list two roles, for example [actor, reference], or remove the entry"
            )
        for role in group:
            if role in seen:
                yield (
                    f"cluster.colocate.{index}={show(group)}: {role} is in cluster.colocate.{seen[role]} already, "
                    f"and has one place; list {role} once"
                )
            seen.setdefault(role, index)
        if {"actor", "reference"} <= set(group) and has_reference(config):
            actors, references = config.train.workers, config.reference.workers
            if actors != references:
                yield (
                    f"cluster.colocate.{index}={show(group)}: worker i of each role shares GPU i, but "
                    f"train.workers={actors} and reference.workers={references}; set reference.workers={actors}"
                )


def _hardware(config: RunConfig, visible_gpus: int) -> Iterator[str]:
    cluster = config.cluster
    if cluster.accelerator == "cpu":
        if config.weight_sync.backend == "nccl":
            yield (
                "weight_sync.backend=nccl: NCCL needs GPUs, and cluster.accelerator=cpu; "
                "set weight_sync.backend=auto, or cluster.accelerator=gpu"
            )
        return
    asks = asked_gpus(config)
    asked = sum(ask.gpus for ask in asks)
    roles = f"{asked} GPUs are asked for: " + " + ".join(map(str, asks))
    there = cluster.nodes * cluster.gpus_per_node
    if asked > there:
        yield (
            f"cluster.nodes={cluster.nodes} * cluster.gpus_per_node={cluster.gpus_per_node}: the cluster has {there} "
            f"GPUs, but {roles}; raise cluster.nodes to {-(-asked // cluster.gpus_per_node)} or make the roles smaller"
        )
    if config.rollout.tensor_parallel > cluster.gpus_per_node:
        yield (
            f"rollout.tensor_parallel={config.rollout.tensor_parallel}: an engine never crosses a node, and "
            f"cluster.gpus_per_node={cluster.gpus_per_node}; "
            f"set rollout.tensor_parallel to {cluster.gpus_per_node} or less"
        )
    if cluster.address is None and asked > visible_gpus:
        yield (
            f"cluster.accelerator=gpu: this machine has {visible_gpus} GPUs that can be used, but {roles}; "
            "set cluster.accelerator=cpu, or cluster.address to a Ray cluster that has them"
        )
