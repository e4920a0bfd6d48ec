"""Rules for algorithms that learn from examples. Each yields one message per violation. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator

from ray_rl.config.loading.explain import show
from ray_rl.config.offline import Sft
from ray_rl.config.rules.adapter import OF_REFERENCE_WORKERS
from ray_rl.config.run import RunConfig
from ray_rl.config.train import ReferenceConfig


def offline_rules(config: RunConfig) -> Iterator[str]:
    """Checks the batch, the reference and the evaluation."""
    algorithm, workers = config.offline, config.train.workers
    if workers > algorithm.batch_size:
        yield (
            f"train.workers={workers}: an optimizer step has {algorithm.batch_size} examples (algorithm.batch_size), "
            f"which are never split, so some workers would have none; set train.workers to {algorithm.batch_size} or "
            "less, or raise algorithm.batch_size"
        )
    yield from _reference(config)
    yield from _evaluation(config)


def _reference(config: RunConfig) -> Iterator[str]:
    algorithm, reference = config.offline, config.reference
    if not algorithm.needs_reference:
        if "reference" in config.model_fields_set:
            why = "with algorithm.reference_free=true " if algorithm.kind == "dpo" else ""
            yield (
                f"reference: algorithm.kind={algorithm.kind} {why}compares the policy with no reference; remove the "
                "section reference"
            )
        return
    if reference is None:
        yield (
            f"reference=null: algorithm.kind={algorithm.kind} compares the policy with a frozen reference; remove "
            "reference: null"
        )
    elif reference.when == "before":
        yield from _reference_before(config, reference)


def _reference_before(config: RunConfig, reference: ReferenceConfig) -> Iterator[str]:
    adapter = config.model.adapter
    if reference.path not in (None, config.model.path, None if adapter is None else adapter.path):
        yield (
            f"reference.path={reference.path}: with reference.when=before the policy itself is the reference, before "
            f"its first step, and model.path={config.model.path}; set reference.when=during, or remove reference.path"
        )
    for name in OF_REFERENCE_WORKERS:
        value = vars(reference)[name]
        if value != ReferenceConfig.model_fields[name].get_default():
            yield (
                f"reference.{name}={show(value)}: with reference.when=before the reference has no workers of its own; "
                f"remove it, or set reference.when=during"
            )


def _evaluation(config: RunConfig) -> Iterator[str]:
    run, best, metrics = config.run, config.checkpoint.keep_best, config.offline.metrics
    if run.evaluate_every is not None and config.data.held_out == 0:
        yield (
            f"run.evaluate_every={run.evaluate_every}: data.held_out=0, so there are no examples to evaluate on; set "
            "data.held_out to their share, for example 0.05, or remove run.evaluate_every"
        )
    if best is not None and best not in (f"eval/{name}" for name in metrics):
        names = ", ".join(f"eval/{name}" for name in metrics)
        yield f"checkpoint.keep_best={show(best)}: no such metric of held-out examples; set it to one of {names}"
    if best == "eval/loss" and isinstance(config.offline, Sft) and config.offline.loss == "dft":
        yield (
            "checkpoint.keep_best=eval/loss: algorithm.loss=dft multiplies the loss of a token by its probability, so "
            "that it is low for unlikely tokens too; set checkpoint.keep_best to eval/cross_entropy"
        )
    if best is not None and run.evaluate_every is None:
        also = " and data.held_out" if config.data.held_out == 0 else ""
        yield (
            f"checkpoint.keep_best={show(best)}: it is measured only in evaluations; set run.evaluate_every{also}, or "
            "remove checkpoint.keep_best"
        )
    if run.patience is not None and best is None:
        yield (
            f"run.patience={run.patience}: it counts evaluations without a better value of checkpoint.keep_best, which "
            "is not set; set checkpoint.keep_best, for example to eval/loss, or remove run.patience"
        )
