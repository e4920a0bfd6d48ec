"""Rules for `model.adapter`. Each yields one message per violation. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator

from ray_rl.catalog.models import find_shape
from ray_rl.config.adapter import RATE_RATIO, Lora
from ray_rl.config.loading.explain import show
from ray_rl.config.offline import ProcessRewardModel, RewardModel, Sft
from ray_rl.config.roles import ACTOR, base_reference, keeps_start, roles_of
from ray_rl.config.run import RunConfig, full_rate
from ray_rl.config.train import ReferenceConfig

OF_REFERENCE_WORKERS = ("workers", "zero_stage", "offload")
"""Settings of the workers of a reference."""
LIKE_FULL = 3
"""Rates below this multiple of full fine-tuning's default look like one of full fine-tuning."""


def adapter_rules(config: RunConfig) -> Iterator[str]:
    """Checks what adapters exclude."""
    adapter = config.model.adapter
    if adapter is None:
        if config.weight_sync.adapter != "auto":
            yield (
                f"weight_sync.adapter={config.weight_sync.adapter}: all weights are trained, so there are no adapters; "
                "remove it, or set model.adapter={kind: lora}"
            )
        if config.checkpoint.export_adapter == "peft":
            yield (
                "checkpoint.export_adapter=peft: all weights are trained, so there are "
                "no adapters; remove it, or set model.adapter={kind: lora}"
            )
        return
    if config.exports_adapters and config.is_offline and config.offline.is_scorer:
        yield (
            f"checkpoint.export_adapter=peft: algorithm.kind={config.algorithm.kind} trains a head too, and judges "
            "load whole models; set checkpoint.export_adapter=merged"
        )
    if config.train.frozen_layers:
        yield (
            f"train.frozen_layers={config.train.frozen_layers}: with model.adapter all weights of the model are "
            "frozen, and each layer has adapters; remove it"
        )
    yield from _targets(config, adapter)
    yield from _dropout(config, adapter)
    for role in roles_of(config):
        if adapter.quantise is not None and role.trained is not None and role.trained.zero_stage == 3:
            yield (
                f"{role.key}.zero_stage=3: it would cut the blocks in which model.adapter.quantise={adapter.quantise} "
                f"stores weights; set {role.key}.zero_stage to 0, 1 or 2"
            )
    yield from _separate(config, adapter)
    yield from _reference(config)


def learning_rate_advice(config: RunConfig) -> Iterator[str]:
    """Yields a sentence for every learning rate of adapters that looks like one of full fine-tuning."""
    if config.model.adapter is None:
        return
    for role in roles_of(config):
        if role.trained is None:
            continue
        rate, default = role.trained.learning_rate, type(role.trained)().learning_rate
        usual = full_rate(config.algorithm.kind) if role.name == ACTOR else default
        if rate < LIKE_FULL * usual:
            yield (
                f"{role.key}.learning_rate={rate:g} looks like one of full fine-tuning (default {usual:g}); adapters "
                f"learn with about {RATE_RATIO} times as much, {RATE_RATIO * usual:g}"
            )


def _targets(config: RunConfig, adapter: Lora) -> Iterator[str]:
    """Checks the names of matrices in models whose layers are known."""
    shape = find_shape(config.model.path)
    if shape is None or adapter.targets == "all-linear":
        return
    unknown = [name for name in adapter.targets if name not in shape.linears]
    if unknown:
        yield (
            f"model.adapter.targets={show(adapter.targets)}: no matrix in the layers of {config.model.path} is named "
            f"{' or '.join(unknown)}; set it to all-linear, or to some of {', '.join(shape.linears)}"
        )


def _dropout(config: RunConfig, adapter: Lora) -> Iterator[str]:
    if adapter.dropout == 0 or isinstance(config.algorithm, Sft | RewardModel | ProcessRewardModel):
        return
    if config.is_offline:
        reason = f"algorithm.kind={config.algorithm.kind} compares log-probabilities, which dropout would change"
    else:
        reason = "engines sample without dropout, so that the trainer's log-probabilities would be those of others"
    yield f"model.adapter.dropout={adapter.dropout:g}: {reason}; set model.adapter.dropout=0"


def _separate(config: RunConfig, adapter: Lora) -> Iterator[str]:
    if config.is_offline or not config.publishes_adapters:
        return
    if adapter.rank > adapter.engine_rank:
        yield (
            f"model.adapter.rank={adapter.rank}: vLLM serves adapters up to rank {adapter.engine_rank}; lower it, or "
            "set weight_sync.adapter=merged"
        )


def _reference(config: RunConfig) -> Iterator[str]:
    reference = base_reference(config)
    if reference is None or (config.is_offline and reference.when == "before"):  # the latter is refused in any case
        return
    without = "with the adapters that it continues" if keeps_start(config) else "without its adapters"
    for name in OF_REFERENCE_WORKERS:
        value = vars(reference)[name]
        if value != ReferenceConfig.model_fields[name].get_default():
            yield (
                f"reference.{name}={show(value)}: with model.adapter the reference is the policy {without}, "
                "in the actor's workers; remove it"
            )
