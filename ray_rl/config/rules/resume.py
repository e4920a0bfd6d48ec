"""What may change in the configuration of a run that goes on. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ray_rl.config.base import Config
from ray_rl.config.loading.explain import as_one_message, show
from ray_rl.config.loading.redact import without_secrets
from ray_rl.config.roles import CRITIC
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError

FIXED = {
    "model.path": "the checkpoint holds the weights of the other model",
    "model.chat_template": "it makes other prompts",
    "data": "the position in the data would mean other prompts",
    "run.seed": "it orders the prompts and seeds the sampling",
    "algorithm.prompts_per_step": "steps and prompts are counted together",
}
"""Keys, or sections, that stay as they were, with the reason."""

CHANGEABLE = ("data.on_bad_row",)
"""Keys in those sections that may change nevertheless: a run that a row has stopped can leave it out."""

FREE = ("run.name", "run.dir", "launch", "data.check_s")
"""Keys, or sections, that are not the run's: where its folder is, which may have been moved, how it is launched and how
long its data is checked."""


def changes(before: Mapping[str, Any], now: RunConfig) -> list[str]:
    """One line for every value that differs: "train.learning_rate: 1e-05 -> 2e-05".

    Args:
        before: what `config.yaml` of the run says, where secrets are left out.
        now: the configuration with which the run goes on.

    Raises:
        ConfigError: a value differs that must not.
    """
    after = without_secrets(now.model_dump())
    old, new = dict(_flat("", before)), dict(_flat("", after))
    keys = [key for key in {**old, **new} if not _is_free(key) and old.get(key) != new.get(key)]
    keys = [key for key in keys if not _is_younger(key, before, now)]
    problems = [
        f"{key}={show(new.get(key))}: the run had {show(old.get(key))}, and {reason}; leave it, or start another run"
        for key in keys
        for fixed, reason in _fixed(before, after).items()
        if key not in CHANGEABLE
        if key == fixed or key.startswith(f"{fixed}.")
    ]
    if problems:
        raise ConfigError(as_one_message(problems))
    return [f"{key}: {show(old.get(key))} -> {show(new.get(key))}" for key in keys]


def _is_younger(key: str, before: Mapping[str, Any], now: RunConfig) -> bool:
    """Whether a run that was started by an older release has no such key, and now has its default."""
    written: Any = before
    section: Any = now
    for name in key.split("."):
        if not isinstance(written, Mapping) or not isinstance(section, Config):
            return False
        if name not in written:
            field = type(section).model_fields[name]
            return bool(vars(section)[name] == field.get_default(call_default_factory=True))
        written, section = written[name], vars(section)[name]
    return False


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _fixed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    fixed = dict(FIXED)
    if before["rollout"]["max_staleness"] > 0:
        fixed["algorithm.group_size"] = "the checkpoint may hold groups of that size"
    if (before[CRITIC] is None) != (now[CRITIC] is None):
        fixed[CRITIC] = "a critic is trained from the first step on, or not at all"
    elif before[CRITIC] is not None:
        fixed["critic.path"] = "the checkpoint holds the weights of the other model"
    return fixed


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        # Tuples come back from a file as lists.
        yield prefix, list(value) if isinstance(value, tuple) else value
