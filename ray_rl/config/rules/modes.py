"""Rules on what an algorithm that learns from rollouts, or from examples, can read. Loads without torch.

Each yields one message per violation. What an algorithm does not read is refused, so that nobody believes it has an
effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from ray_rl.config.base import Config
from ray_rl.config.data import (
    Computed,
    Mixture,
    OfflineFormat,
    OnlineFormat,
    RecordSource,
    Source,
    Table,
)
from ray_rl.config.loading.explain import show
from ray_rl.config.offline import RewardModel
from ray_rl.config.run import ONLINE_SECTIONS, RunConfig
from ray_rl.config.unread import UNREAD_OFFLINE, UNREAD_ONLINE


def mode_rules(config: RunConfig) -> Iterator[str]:
    """Refuses sections, values and data that the algorithm does not read."""
    kind = config.algorithm.kind
    if config.is_offline:
        for section, reason in ONLINE_SECTIONS.items():
            if section in config.model_fields_set:
                yield f"{section}: algorithm.kind={kind} {reason}; remove the section {section}"
        yield from _unread(config, UNREAD_OFFLINE, f"algorithm.kind={kind} learns from examples and does not read it")
    else:
        yield from _unread(config, UNREAD_ONLINE, f"algorithm.kind={kind} learns from rollouts and does not read it")
    yield from _length(config)
    yield from _rows(config)
    yield from _plain_text(config)


def _unread(config: RunConfig, keys: dict[str, str], reason: str) -> Iterator[str]:
    for key, remedy in keys.items():
        name, _, field = key.partition(".")
        section: Any = vars(config)[name]
        if not isinstance(section, Config) or field not in type(section).model_fields:
            continue
        value = vars(section)[field]
        # A file that a run wrote has every default.
        if value != type(section).model_fields[field].get_default():
            yield f"{key}={show(value)}: {reason}; {remedy}"


def _length(config: RunConfig) -> Iterator[str]:
    run = config.run
    if config.is_offline and run.steps is not None and run.epochs is not None:
        yield (
            f"run.epochs={run.epochs}: run.steps={run.steps} sets the length of the run too, in batches of "
            "algorithm.batch_size examples; remove one of them"
        )


def _rows(config: RunConfig) -> Iterator[str]:
    kind = config.algorithm.kind
    match config.data:
        case Mixture() as mixture if config.is_offline:
            for index, part in enumerate(mixture.parts):
                yield from _part(config, f"data.parts.{index}.source", part.source)
        case Mixture():
            yield (
                f"data.kind=mixture: algorithm.kind={kind} learns from rollouts, whose prompts come from one source; "
                "set data.kind to another kind"
            )
        case generated if config.is_offline and isinstance(generated, Computed):
            yield (
                f"data.kind={generated.kind}: it has questions without answers to learn from, which algorithm.kind="
                f"{kind} needs; set data.kind to jsonl, parquet, csv, hub, custom or mixture"
            )
        case source:
            yield from _format(config, "data", source)


def _plain_text(config: RunConfig) -> Iterator[str]:
    """Checks sources that do without the chat template."""
    data = config.data
    parts = data.parts if isinstance(data, Mixture) else ()
    sources: dict[str, Source] = {f"data.parts.{index}.source": part.source for index, part in enumerate(parts)}
    sources = sources or {"data": data}
    plain = [key for key, source in sources.items() if isinstance(source, Table) and not source.chat]
    if plain and data.system_prompt is not None:
        yield (
            f"data.system_prompt={show(data.system_prompt)}: it is a message for the chat template, and "
            f"{plain[0]}.chat=false feeds text without one; remove it, or put it into the text of the prompts"
        )
    if plain and len(plain) < len(sources) and isinstance(config.algorithm, RewardModel):
        yield (
            f"{plain[0]}.chat=false: other parts go through the chat template, and a reward model reads all texts in "
            "one way; set the same value in all parts"
        )


def _part(config: RunConfig, key: str, source: RecordSource) -> Iterator[str]:
    yield from _format(config, key, source)
    for name, field in Source.model_fields.items():
        if vars(source)[name] != field.get_default(call_default_factory=True):
            yield (
                f"{key}.{name}={show(vars(source)[name])}: all parts of a mixture have the same value; remove it, and "
                f"set data.{name}"
            )


def _format(config: RunConfig, key: str, source: Source) -> Iterator[str]:
    right, wrong = (OfflineFormat, OnlineFormat) if config.is_offline else (OnlineFormat, OfflineFormat)
    if isinstance(source, Table) and source.format in get_args(wrong):
        yield (
            f"{key}.format={source.format}: not a format of the {'examples' if config.is_offline else 'prompts'} that "
            f"algorithm.kind={config.algorithm.kind} reads; set {key}.format to auto or one of "
            f"{', '.join(get_args(right))}"
        )
