"""Rules for the algorithm and the models that it trains. Each yields one message per violation."""

from __future__ import annotations

from collections.abc import Iterator

from ray_rl.catalog.models import find_shape
from ray_rl.config.advantages import CustomAdvantage, Gae, GroupAdvantage, LeaveOneOut, ReinforcePlusPlus
from ray_rl.config.algorithm import AdaptiveKl, Algorithm
from ray_rl.config.rewards import ModelReward
from ray_rl.config.roles import roles_of
from ray_rl.config.rules.offline import offline_rules
from ray_rl.config.run import RunConfig
from ray_rl.config.train import Trained


def algorithm_rules(config: RunConfig) -> Iterator[str]:
    """Checks the batch, the estimator, the KL penalty and the rewards; or the batch of examples and the reference."""
    if config.is_offline:
        yield from offline_rules(config)
        return
    yield from _batch(config)
    yield from _denominator(config.online)
    yield from _critic(config)
    yield from _kl(config)
    yield from _off_policy(config)
    yield from _reward_model(config)


def training_rules(config: RunConfig) -> Iterator[str]:
    """Checks schedules, frozen layers, and the rules of DeepSpeed."""
    for role in roles_of(config):
        if role.trained is not None:
            yield from _schedule(config, role.key, role.trained)
            yield from _deepspeed(config, role.key, role.trained)
    frozen, shape = config.train.frozen_layers, find_shape(config.model.path)
    if shape is not None and frozen >= shape.layers:
        yield (
            f"train.frozen_layers={frozen}: {config.model.path} has {shape.layers} decoder layers and one must be "
            f"trained; set train.frozen_layers to {shape.layers - 1} or less"
        )
    if config.reference is not None and config.reference.offload and config.reference.zero_stage != 3:
        yield (
            "reference.offload=true: only ZeRO stage 3 can move parameters to the CPU, and reference.zero_stage="
            f"{config.reference.zero_stage}; set reference.zero_stage=3 or reference.offload=false"
        )


def _batch(config: RunConfig) -> Iterator[str]:
    algorithm = config.online
    if algorithm.group_size < 2 and _compares(algorithm):
        yield (
            f"algorithm.group_size={algorithm.group_size}: algorithm.advantage.kind={algorithm.advantage.kind} "
            "compares the completions of a prompt with each other; set algorithm.group_size to 2 or more"
        )
    if algorithm.group_size < 2 and algorithm.dynamic_sampling is not None:
        yield (
            f"algorithm.group_size={algorithm.group_size}: algorithm.dynamic_sampling replaces groups whose rewards "
            "are all equal, and one alone always is; set algorithm.group_size to 2 or more, or "
            "algorithm.dynamic_sampling=null"
        )
    prompts, minibatches = algorithm.prompts_per_step, algorithm.minibatches
    if prompts % minibatches:
        divisors = ", ".join(str(n) for n in range(1, prompts + 1) if prompts % n == 0)
        yield (
            f"algorithm.minibatches={minibatches}: does not divide algorithm.prompts_per_step={prompts}; "
            f"set algorithm.minibatches to one of {divisors}"
        )
    rollouts = prompts * algorithm.group_size // minibatches
    for role in roles_of(config):
        key, workers = role.key, role.workers
        if role.trained is not None and workers > rollouts:
            yield (
                f"{key}.workers={workers}: a minibatch holds {rollouts} rollouts (prompts_per_step {prompts} "
                f"* group_size {algorithm.group_size} / minibatches {minibatches}), so some workers would have none; "
                f"set {key}.workers to {max(rollouts, 1)} or less, or raise algorithm.prompts_per_step"
            )


def _compares(algorithm: Algorithm) -> bool:
    """Returns whether the estimator compares the completions of a prompt, and so needs at least two."""
    match algorithm.advantage:
        case Gae() | ReinforcePlusPlus() | CustomAdvantage():
            return False
        case GroupAdvantage(singleton="score") | LeaveOneOut(singleton="score"):
            return False
        case _:
            return True


def _denominator(algorithm: Algorithm) -> Iterator[str]:
    if algorithm.reduction_denominator is not None and algorithm.reduction != "constant":
        yield (
            f"algorithm.reduction_denominator={algorithm.reduction_denominator:g}: algorithm.reduction="
            f"{algorithm.reduction} has no denominator of its own; remove it, or set algorithm.reduction=constant"
        )


def _critic(config: RunConfig) -> Iterator[str]:
    algorithm = config.online
    has_gae, is_ppo = isinstance(algorithm.advantage, Gae), algorithm.kind == "ppo"
    if is_ppo and not has_gae:
        yield (
            f"algorithm.advantage.kind={algorithm.advantage.kind}: algorithm.kind=ppo estimates advantages with a "
            "critic; remove algorithm.advantage, or set algorithm.kind to an algorithm without a critic, such as grpo"
        )
    if has_gae and not is_ppo:
        yield (
            f"algorithm.advantage.kind=gae: it needs the values of a critic, and algorithm.kind={algorithm.kind} has "
            "none; set algorithm.kind=ppo, or remove algorithm.advantage"
        )
    if config.critic is None and is_ppo:
        yield (
            "critic=null: algorithm.kind=ppo estimates advantages with a critic; remove critic: null, or set "
            "algorithm.kind to an algorithm without a critic, such as grpo"
        )
    if config.critic is not None and not is_ppo:
        yield (
            f"critic: algorithm.kind={algorithm.kind} does not use a critic; remove the section critic, or set "
            "algorithm.kind=ppo"
        )


def _kl(config: RunConfig) -> Iterator[str]:
    kl = config.online.kl
    if kl.coefficient > 0 and config.reference is None:
        yield (
            f"algorithm.kl.coefficient={kl.coefficient}: the KL penalty in the {kl.place} needs a frozen reference, "
            "but reference is null; remove reference: null, or set algorithm.kl.coefficient=0"
        )
    if kl.place == "reward" and kl.coefficient == 0:
        yield (
            "algorithm.kl.place=reward: there is no KL penalty, because algorithm.kl.coefficient=0; set the "
            "coefficient above 0, or algorithm.kl.place=loss"
        )
    if isinstance(kl.control, AdaptiveKl):
        if kl.coefficient == 0:
            yield (
                "algorithm.kl.control.kind=adaptive: a coefficient of 0 stays 0; set algorithm.kl.coefficient to its "
                "first value, for example 0.05"
            )
        rollouts = config.online.prompts_per_step * config.online.group_size
        if kl.control.horizon <= rollouts:
            yield (
                f"algorithm.kl.control.horizon={kl.control.horizon:g}: shorter than a step of {rollouts} rollouts, so "
                f"that the coefficient would oscillate; set algorithm.kl.control.horizon above {rollouts}"
            )


def _off_policy(config: RunConfig) -> Iterator[str]:
    if config.rollout.top_p < 1:
        yield (
            f"rollout.top_p={config.rollout.top_p:g}: completions would be sampled from a part of the vocabulary, but "
            "the trainer computes probabilities over all of it, so that every ratio would be biased; set "
            "rollout.top_p=1"
        )
    if config.rollout.on_publish == "abort_and_resume" and config.rollout.stop:
        yield (
            "rollout.on_publish=abort_and_resume: a publish can cut a string of rollout.stop in two, which would then "
            "not end the completion; set rollout.on_publish=keep"
        )
    if config.online.old_policy == "rollout" and config.online.correction is not None:
        yield (
            "algorithm.correction: it compares the trainer's old log-probabilities with the engine's, and with "
            "algorithm.old_policy=rollout both are the engine's; set algorithm.correction=null, or "
            "algorithm.old_policy=trainer"
        )


def _reward_model(config: RunConfig) -> Iterator[str]:
    reward = config.reward_models
    if reward is None:
        return
    key, models, workers = config.reward_models_key, len(reward.paths), reward.workers
    if sum(isinstance(part, ModelReward) for part in config.rewards) > 1:
        yield (
            f"{key}.kind=model: another entry of rewards has this kind too; list all models in {key}.paths, which "
            "combines their scores"
        )
    if workers > models and workers % models:
        yield (
            f"{key}.workers={workers}: more workers than models, but no multiple of the {models} models, so that they "
            f"could not be shared equally; set {key}.workers to {models} or less, or to a multiple of {models}"
        )


def _schedule(config: RunConfig, key: str, role: Trained) -> Iterator[str]:
    if config.run.steps is None:
        return
    each = 1 if config.is_offline else config.online.optimizer_steps
    steps = config.run.steps * each
    warmup = role.schedule.warmup_steps
    if warmup >= steps:
        yield (
            f"{key}.schedule.warmup_steps={warmup}: the run has {steps} optimizer steps (run.steps "
            f"{config.run.steps} * {each} a step), so the learning rate would never reach its peak; set "
            f"{key}.schedule.warmup_steps to {f'{steps - 1} or less' if steps > 1 else 0}, or raise "
            f"{'run.steps or run.epochs' if config.is_offline else 'run.steps'}"
        )


def _deepspeed(config: RunConfig, key: str, role: Trained) -> Iterator[str]:
    if role.offload.parameters and role.zero_stage != 3:
        yield (
            f"{key}.offload.parameters=true: only ZeRO stage 3 can move parameters to the CPU, and "
            f"{key}.zero_stage={role.zero_stage}; set {key}.zero_stage=3 or {key}.offload.parameters=false"
        )
    if role.offload.optimizer and role.zero_stage == 0:
        yield (
            f"{key}.offload.optimizer=true: ZeRO stage 0 cannot move the optimizer to the CPU; "
            f"set {key}.zero_stage to 1, 2 or 3, or {key}.offload.optimizer=false"
        )
    # auto may mean bfloat16, and a configuration must be valid on all machines or on none.
    if role.zero_stage == 0 and config.model.dtype != "float32" and role.gradient_dtype == "float32":
        yield (
            f"{key}.gradient_dtype=float32: DeepSpeed refuses to sum gradients in float32 at {key}.zero_stage=0 under "
            f"model.dtype={config.model.dtype}; set {key}.zero_stage=1, or {key}.gradient_dtype=bfloat16, or "
            "model.dtype=float32"
        )
    bf16 = role.deepspeed.get("bf16")
    if isinstance(bf16, dict) and bf16.get("check_grad_overflow") is False:
        yield (
            f"{key}.deepspeed.bf16.check_grad_overflow=false: DeepSpeed would apply gradients that are not finite; "
            f"remove it from {key}.deepspeed"
        )
